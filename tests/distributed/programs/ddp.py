"""Fifty steps of DistributedDataParallel on dpcomm and on Gloo: ddp.py [forward | backward].

The last rank is killed in that pass of its third step, if one is given: while DDP broadcasts
buffers, or while its C++ waits for gradients.
"""

from __future__ import annotations

import os
import signal
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dpcomm.distributed  # noqa: F401  (torch knows the backend from here on)


def die(_: object = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train(group: dist.ProcessGroup) -> torch.Tensor:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(20, 64, bias=False), nn.BatchNorm1d(64), nn.Tanh(), nn.Linear(64, 1)
    )
    # Several buckets, so that communication overlaps the backward pass, and a buffer to broadcast.
    model = DistributedDataParallel(net, process_group=group, bucket_cap_mb=0.002)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(rank)
    for step in range(50):
        if step == 3 and rank == dist.get_world_size() - 1:
            if "forward" in sys.argv:
                die()
            if "backward" in sys.argv:
                net[0].weight.register_hook(die)
        x = torch.randn(8, 20, generator=generator)
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("dpcomm")
    ours = train(dist.group.WORLD)
    gloo = dist.new_group(backend="gloo")
    torch.testing.assert_close(ours, train(gloo), rtol=1e-5, atol=1e-6)
    everywhere = [torch.empty_like(ours) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, ours)
    assert all(torch.equal(other, ours) for other in everywhere)
    dist.barrier(gloo)
    if dist.get_rank() == 0:
        print("the same parameters")
    dist.destroy_process_group()  # Gloo's threads must not outlive the process


main()
