"""A child of a rank lets go of what the rank shares, which stays: forked.py."""

from __future__ import annotations

import os

import numpy as np

import dpcomm

comm = dpcomm.init("shm")
shared = comm.empty(4096)
shared[:] = comm.rank + 1
if (child := os.fork()) == 0:
    del shared
    os._exit(0)
assert os.waitpid(child, 0) == (child, 0)
assert (shared == comm.rank + 1).all(), "the child wiped it"
np.testing.assert_array_equal(comm.all_reduce(shared), sum(range(comm.size + 1)))
print(f"rank {comm.rank} holds", flush=True)
