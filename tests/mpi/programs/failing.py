"""What a failure over MPI is to those that it meets: failing.py again|sends|split|threads.

again: rank 1 ends the job; each later call of the others says so, at once. sends: so does a call
soon after, of ranks that wait for nothing of rank 1's. split: rank 1 is in the first half of a
split and no more; the others' wait for it has a deadline. threads: MPI was initialised for one
thread at a time.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np
import pytest

import dpcomm


def broadcast(times: int) -> None:
    for _ in range(times):
        comm.broadcast(np.ones(1), root=0)


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
end = time.monotonic() + {"split": 6, "sends": 2}.get(case, 1)
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
        broadcast(64)  # few, and short: nobody waits for rank 1 to take them
elif failing:
    comm.all_gather(np.array([0, 1], np.int32))
else:
    with pytest.raises(dpcomm.TimeoutError, match=r"in split #[\s\S]*waiting for rank 1\n"):
        comm.split(0, comm.rank)
print(f"rank {comm.rank} holds", flush=True)
# MPI cannot be finalised any more, and who ends without it ends the others, which may yet print.
time.sleep(max(0.0, end - time.monotonic()))
os._exit(0)
