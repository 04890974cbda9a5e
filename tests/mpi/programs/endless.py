"""All-reduces without end, for tests that end them: endless.py FOLDER [TRANSPORT] [FAILING_RANK].

Each rank writes its pid to FOLDER/RANK once it is under way.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

import dpcomm

folder, transport, failing = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
comm = dpcomm.init(transport)
array = np.ones(50_000, np.float32)
for step in range(10**9):
    comm.all_reduce(array, op="mean")
    if step == 5:
        (folder / f"{comm.rank}.tmp").write_text(str(os.getpid()))
        (folder / f"{comm.rank}.tmp").rename(folder / str(comm.rank))
    if step == 20 and comm.rank == failing:
        raise RuntimeError("planted")
