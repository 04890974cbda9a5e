"""Private training under DistributedDataParallel: torchrun --nproc-per-node 2 examples/ddp.py

Clips by a second backward pass over weighted losses; the hook sums over ranks, adds the noise and
divides. Each rank draws from its own records by one secret key, so no two draw the same.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dpcomm.distributed
from dpcomm.privacy.step import shared_key

RECORDS, BATCH, CLIP_NORM, SIGMA, STEPS, DELTA = 4096, 128, 1.0, 1.0, 60, 1e-5

dist.init_process_group("dpcomm")
comm = dpcomm.from_process_group()
torch.manual_seed(0)
x = torch.randn(RECORDS, 10)
t = (x[:, :5].sum(1) > 0).float()

model = DistributedDataParallel(nn.Linear(10, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
step = dpcomm.register_private_hook(model, CLIP_NORM, SIGMA, expected_batch=BATCH)

rate, key = BATCH / RECORDS, shared_key(comm)
begin, end = RECORDS * comm.rank // comm.size, RECORDS * (comm.rank + 1) // comm.size
for index in range(STEPS):
    ids = torch.from_numpy(dpcomm.poisson_sample(key, index, rate, begin, end))
    outputs = model(x[ids]).squeeze(1)
    losses = nn.functional.binary_cross_entropy_with_logits(outputs, t[ids], reduction="none")
    # Of one linear layer a sample's gradient is its error times (input, 1).
    errors = outputs.detach().sigmoid() - t[ids]
    norms = errors.abs() * (x[ids].square().sum(1) + 1).sqrt()
    factors = (CLIP_NORM * (1 - 1e-6) / norms).clamp(max=1.0)
    optimizer.zero_grad()
    (factors * losses).sum().backward()
    optimizer.step()

if comm.rank == 0:
    accuracy = ((model.module(x).squeeze(1) > 0) == (t > 0)).float().mean()
    epsilon = dpcomm.accounting.epsilon(rate, step.noise_multiplier, step.steps, DELTA)
    print(f"accuracy {accuracy:.3f} at epsilon {dpcomm.accounting.show(epsilon)}")
dist.destroy_process_group()
