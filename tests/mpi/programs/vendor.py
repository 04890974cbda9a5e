"""algo="mpi" beside ours, and what it refuses, over transport mpi and over shm."""

from __future__ import annotations

import numpy as np
import pytest

import dpcomm

comm = dpcomm.init("mpi")
for dtype in ("float64", "float32", "int64", "int32", "uint8"):
    for op in ("sum", "max", "min"):
        part = (np.arange(1001) % 7 + comm.rank).astype(dtype)
        ours, theirs = (comm.all_reduce(part.copy(), op=op, algo=a) for a in ("ring", "mpi"))
        assert (ours == theirs).all(), (dtype, op)
assert comm.all_reduce(np.full(3, comm.rank + 1.0), op="mean", algo="mpi")[0] == (comm.size + 1) / 2
shm = dpcomm.init("shm")
refused = ((comm, np.float16, "does not add float16"), (shm, np.float64, "init.transport='mpi'"))
for group, dtype, message in refused:
    with pytest.raises(dpcomm.UsageError, match=message):
        group.all_reduce(np.ones(2, dtype), algo="mpi")
    assert group.all_reduce(np.ones(2))[0] == comm.size  # it lives on
if comm.rank == 0:
    print(f"MPI_Allreduce of {comm.size} ranks holds")
