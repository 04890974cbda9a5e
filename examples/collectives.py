"""The collectives alone: mpirun -np 2 python examples/collectives.py"""

from __future__ import annotations

import numpy as np

import dpcomm

comm = dpcomm.init()

mine = comm.empty(3 << 18, "float32")  # shared with the other ranks of this host: no copies
mine[:] = comm.rank + 1
total = comm.size * (comm.size + 1) / 2
assert (comm.all_reduce(mine, out=np.empty_like(mine)) == total).all()
for algo in ("ring", "butterfly", "tree"):  # any schedule by its name; None lets the tuner choose
    assert (comm.all_reduce(mine, algo=algo, out=np.empty_like(mine)) == total).all()

shard = comm.reduce_scatter(mine)  # of the sum, an equal part on each rank
assert (comm.all_gather(shard) == total).all()

begun = comm.all_reduce(mine, async_op=True)
# Here another computation runs.
begun.wait()
assert (mine == total).all()

everyone = comm.all_gather(np.array([comm.rank]))
if comm.rank == 0:
    print(f"{comm.size} ranks, {everyone.tolist()}, add up to {total:.0f}")
