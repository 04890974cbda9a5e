"""All-reduces without end, for tests that end them: endless.py FOLDER TRANSPORT FAILING PARTS.

Rank FAILING raises an error. The all-reduces are of PARTS parts of the ranks, each by itself. Each
rank writes its pid to FOLDER/RANK once it is under way.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

import dpcomm

folder, transport = Path(sys.argv[1]), sys.argv[2]
failing, parts = int(sys.argv[3]), int(sys.argv[4])
comm = dpcomm.init(transport)
group = comm if parts == 1 else comm.split(comm.rank % parts)
array = np.ones(50_000, np.float32)
for step in range(10**9):
    group.all_reduce(array, op="mean")
    if step == 5:
        (folder / f"{comm.rank}.tmp").write_text(str(os.getpid()))
        (folder / f"{comm.rank}.tmp").rename(folder / str(comm.rank))
    if step == 20 and comm.rank == failing:
        while len(list(folder.glob("[0-9]"))) < comm.size:
            time.sleep(0.01)
        raise RuntimeError("planted")
