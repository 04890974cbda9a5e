"""Clipping, the private step and accounting by hand: mpirun -np 2 python examples/by_hand.py

A mean of vectors, each record's of norm at most one, over all ranks.
"""

from __future__ import annotations

import numpy as np

import dpcomm

RECORDS, SIZE, RATE, SIGMA = 20_000, 50, 0.5, 4.0  # records over all ranks

comm = dpcomm.init()
begin, end = RECORDS * comm.rank // comm.size, RECORDS * (comm.rank + 1) // comm.size
records = np.random.default_rng(0).normal(0.1, 0.1, (RECORDS, SIZE)).astype("float32")

step = dpcomm.PrivateStep(comm, SIZE, 1.0, SIGMA, expected_batch=RATE * RECORDS)
key = dpcomm.new_key() if comm.rank == 0 else bytes(32)
key = comm.broadcast(np.frombuffer(key, np.uint8).copy()).tobytes()
drawn = dpcomm.poisson_sample(key, 0, RATE, begin, end)  # each rank from its own part
mean = step(dpcomm.clip_sum(records[drawn], clip_norm=1.0).total)

if comm.rank == 0:
    spent = dpcomm.accounting.epsilon(RATE, SIGMA, step.steps, delta=1e-6)
    error = np.abs(mean - records.mean(0)).max()
    print(f"mean {mean.mean():.4f}, off by {error:.4f}, at epsilon {dpcomm.accounting.show(spent)}")
