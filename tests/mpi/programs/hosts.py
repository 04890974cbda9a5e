"""Every schedule over shm+mpi, the ranks on hosts that DPCOMM_HOSTS says: hosts.py"""

from __future__ import annotations

import os

import numpy as np

import dpcomm
from dpcomm import _core

comm = dpcomm.init()
hosts = [int(host) for host in os.environ["DPCOMM_HOSTS"].split(",")]
assert comm.transport == "shm+mpi"
assert comm.hosts == len(set(hosts))
total = comm.size * (comm.size + 1) // 2
for algorithm in [*_core.algorithms(), "mpi"]:
    for count in (0, 1, 1000, 600_001):
        result = comm.all_reduce(np.full(count, comm.rank + 1.0, np.float32), algo=algorithm)
        assert (result == total).all(), (algorithm, count)
mean = comm.all_reduce(np.full(9, comm.rank + 1.0), op="mean", algo="hierarchical")
assert (mean == total / comm.size).all()
comm.barrier()

# Ranks of one host have shared memory among them, others go by both ways.
host = comm.split(hosts[comm.rank])
assert host is not None
assert (host.hosts, host.size, host.transport) == (1, hosts.count(hosts[comm.rank]), "shm")
assert host.all_reduce(np.ones(100_000))[-1] == host.size
turned = comm.split(0, key=-comm.rank)
assert turned is not None
assert (turned.rank, turned.hosts) == (comm.size - 1 - comm.rank, comm.hosts)
assert turned.all_reduce(np.ones(100_000), algo="hierarchical")[-1] == comm.size
leaders = comm.split(0 if comm.rank == hosts.index(hosts[comm.rank]) else -1)
if leaders is not None:
    assert leaders.all_reduce(np.ones(3))[0] == comm.hosts
comm.barrier()
if comm.rank == 0:
    print(f"{comm.size} ranks on {comm.hosts} hosts hold")
