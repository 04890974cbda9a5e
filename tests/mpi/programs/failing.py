"""What a failure over MPI is to those that it meets: failing.py again|split|threads.

again: rank 1 ends the job; each later call of the others says so, at once. split: rank 1 is in the
first half of a split and no more; the others' wait for it has a deadline. threads: MPI was initialised for
one thread at a time.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np

import dpcomm

if sys.argv[1] == "threads":
    import mpi4py

    mpi4py.rc.thread_level = "serialized"
    try:
        dpcomm.init("mpi")
    except dpcomm.EnvironmentError as error:
        assert "MPI_THREAD_MULTIPLE" in str(error), error
        print("a rank holds")
        sys.exit()
comm = dpcomm.init("mpi", timeout=3)
comm.barrier()
failing = comm.rank == 1
end = time.monotonic() + (1 if sys.argv[1] == "again" else 6)
if sys.argv[1] == "again":
    part = comm.split(0)
    if failing:
        comm.core.abort("ValueError: planted")
    for group in (comm, part, comm) if not failing else (comm,):
        begin = time.monotonic()
        try:
            group.barrier()
        except dpcomm.LostPeerError as error:
            assert "rank 1 ended the job: ValueError: planted" in str(error), error
            assert time.monotonic() - begin < 2, "only at the deadline"
        else:
            raise AssertionError("nobody raised")
elif failing:
    comm.all_gather(np.array([0, 1], np.int32))
else:
    try:
        comm.split(0, comm.rank)
    except dpcomm.TimeoutError as error:
        assert "in split #" in str(error), error
        assert "waiting for rank 1" in str(error), error
print(f"rank {comm.rank} holds", flush=True)
# MPI cannot be finalised any more, and who ends without it ends the others, which may yet print.
time.sleep(max(0.0, end - time.monotonic()))
os._exit(0)
