"""A private step by the hook of DDP: private_hook.py OUT NOISE_MULTIPLIER BACKEND.

Gradients are clipped by a second pass over weighted losses. Rank r has the records r, r + size, …
of 24, the last rank of several none at all. Rank 0 saves the gradients of three steps.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dpcomm.distributed

RECORDS, CLIP_NORM, EXPECTED_BATCH = 24, 0.5, 20.0


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 200), nn.Tanh(), nn.Linear(200, 100), nn.Linear(100, 1))


def records() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(RECORDS, 30, generator=torch.Generator().manual_seed(1))
    return x * torch.logspace(-2, 1, RECORDS)[:, None], x.sum(1)


def losses(net: nn.Module, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return (net(x).squeeze(1) - t).square()


def clipped(net: nn.Module, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The clip factor of each sample, one at a time."""
    factors = []
    for sample, target in zip(x, t, strict=True):
        gradients = torch.autograd.grad(
            losses(net, sample[None], target[None]).sum(), list(net.parameters())
        )
        norm = torch.cat([g.reshape(-1) for g in gradients]).norm()
        factors.append(min(1.0, CLIP_NORM / float(norm)))
    return torch.tensor(factors)


def main() -> None:
    out, noise_multiplier, backend = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    dist.init_process_group(backend)
    rank, size = dist.get_rank(), dist.get_world_size()
    net = network()
    model = DistributedDataParallel(net, bucket_cap_mb=0.03)  # several buckets
    step = dpcomm.register_private_hook(
        model, CLIP_NORM, noise_multiplier, EXPECTED_BATCH, unsafe_seed=7
    )
    ranks = max(1, size - 1)
    x, t = records()
    mine = slice(RECORDS, None) if rank == ranks else slice(rank, None, ranks)
    x, t = x[mine], t[mine]
    weights, gradients = clipped(net, x, t), []
    for accumulate in (False, False, True):
        model.zero_grad()
        if accumulate:  # one private step of two parts
            half = len(x) // 2
            with model.no_sync():
                (weights[:half] * losses(model, x[:half], t[:half])).sum().backward()
            (weights[half:] * losses(model, x[half:], t[half:])).sum().backward()
        else:
            (weights * losses(model, x, t)).sum().backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in net.parameters()]))
    assert step.steps == 3
    if rank == 0:
        torch.save(torch.stack(gradients), out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
