"""Sums and private steps of ranks that may run on different cores: pinned.py FOLDER CORES….

Rank r runs on the first CORES[r] of the cores there are. Each rank writes FOLDER/RANK: "right", or
what is wrong.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

rank = int(os.environ["RANK"])
folder, cores = Path(sys.argv[1]), [int(text) for text in sys.argv[2:]]
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: cores[rank]])

import dpcomm  # noqa: E402  (pinned first, as a launcher does it)

comm = dpcomm.init("shm", timeout=20)
wrong = []
# Posted whole; pieces on demand, one and many; fixed slices; staged where peers cannot see it.
for count in (16, 5_000, 1_000_000, 5_000_000):
    for array in (comm.empty(count), np.empty(count, np.float32)):
        for call in range(3):
            array[:] = 1
            times = np.zeros(count, np.uint8)

            def complete(pointer: int, offset: int, length: int, times=times) -> None:
                times[offset : offset + length] += 1

            comm.core.all_reduce_with(array.ctypes.data, count, "float32", "sum", "", complete)
            everywhere = comm.all_reduce(times, algo="ring")
            expected = comm.size if array.nbytes <= 4096 else 1  # tiny ones: by each rank for all
            if (array != comm.size).any() or (everywhere != expected).any():
                wrong.append(f"{count} elements, call {call}: sum or epilogue")

array = comm.empty(1_000_000)
array[:] = 0
dpcomm.PrivateStep(comm, array.size, 1.0, 1.0, 1.0, unsafe_seed=1)(array)
if abs(array.std() - 1) > 0.01:
    wrong.append(f"noise of standard deviation {array.std()} for 1")
(folder / f"{rank}").write_text("\n".join(wrong) or "right")
