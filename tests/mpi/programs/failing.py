"""What a failure over MPI is to those that it meets: failing.py again|sends|late|split|threads.

again: rank 1 ends the job; each later call of the others says so, at once. sends: ranks that wait
for nothing from rank 1 hear of it too. late: rank 1 does not come, and takes nothing of what the
others send. split: rank 1 is in the first half of a split and no more; the others' wait for it has
a deadline. threads: MPI was initialised for one thread at a time.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np
import pytest

import dpcomm

case = sys.argv[1]
if case == "threads":
    import mpi4py

    mpi4py.rc.thread_level = "serialized"
    with pytest.raises(dpcomm.EnvironmentError, match="dpcomm needs MPI_THREAD_MULTIPLE"):
        dpcomm.init("mpi")
    print("holds")
    sys.exit()

comm = dpcomm.init("mpi", timeout=3)
comm.barrier()
failing = comm.rank == 1
end = time.monotonic() + (6 if case in ("late", "split") else 2)
if case == "again":
    part = comm.split(0)
    if failing:
        comm.core.abort("ValueError: planted")
    for group in (comm,) if failing else (comm, part, comm):
        begin = time.monotonic()
        with pytest.raises(dpcomm.LostPeerError, match="rank 1 ended the job: ValueError: planted"):
            group.barrier()
        assert time.monotonic() - begin < 2, "only at the deadline"
elif case == "sends":
    if failing:
        comm.core.abort("ValueError: planted")
    time.sleep(0.5)  # for the word to spread
    with pytest.raises(dpcomm.LostPeerError, match="rank 1 ended the job: ValueError: planted"):
        comm.broadcast(np.ones(1), root=0)  # short: nobody waits for rank 1 to take it
elif case == "late" and not failing:
    with pytest.raises(dpcomm.TimeoutError, match="timeout 3 s in all_reduce"):
        comm.all_reduce(np.ones(1_000_000, np.float32), algo="ring")
elif case == "late":
    pass
elif failing:
    comm.all_gather(np.array([0, 1], np.int32))
else:
    with pytest.raises(dpcomm.TimeoutError, match=r"in split #[\s\S]*waiting for rank 1\n"):
        comm.split(0, comm.rank)
print(f"rank {comm.rank} holds", flush=True)
# MPI cannot be finalised any more, and who ends without it ends the others, which may yet print.
time.sleep(max(0.0, end - time.monotonic()))
os._exit(0)
