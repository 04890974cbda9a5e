"""A private DistributedDataParallel: the noise of DP-SGD as a communication hook.

model = DistributedDataParallel(net)
step = dpcomm.register_private_hook(
    model, clip_norm=1.0, noise_multiplier=1.1, expected_batch=256
)
...                                      # a backward pass that leaves clipped sums
print(dpcomm.accounting.epsilon(rate, step.noise_multiplier, step.steps, delta))
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dpcomm._core import UsageError
from dpcomm.distributed import ProcessGroup, Work, from_process_group
from dpcomm.privacy.step import PrivateStep
from dpcomm.torch import refuse_mixing


def register_private_hook(
    model: DistributedDataParallel,
    clip_norm: float,
    noise_multiplier: float,
    expected_batch: float,
    *,
    unsafe_seed: int | None = None,
) -> PrivateStep:
    """Makes the model's gradients, from here on, the noisy mean of what its ranks' backward leaves.

    The backward pass must leave on each rank the *sum* of its samples' clipped gradients, each of
    L2 norm at most `clip_norm` over all parameters: as by a second pass over the losses weighted
    with the clip factors. The hook cannot see samples, and trusts that. It sums over ranks, adds
    the noise once, by the rank that owns an element, and divides by `expected_batch`, the sample
    rate times the records of all ranks. Every rank runs every backward pass, one with an empty
    batch too, which contributes zeros; passes under `no_sync()` add up to one private step.

    Returns the step, whose `steps` counts the backward passes released, for the accountant. See
    `PrivateStep` for its key and `unsafe_seed`. Works beside any backend of the model's group.
    Collective. Raises UsageError for a model whose samples mix, whose gradients are not float32 on
    the CPU, or where DDP would leave a gradient unchanged: with find_unused_parameters, whether a
    parameter is used tells something of the batch.
    """
    refuse_mixing(model.module)
    if model.find_unused_parameters:
        raise UsageError(
            "find_unused_parameters=True: what is unused would get no noise; set False"
        )
    ignored = {name for name, _ in model.module.named_parameters()} & model.parameters_to_ignore
    if ignored:
        raise UsageError(f"DDP ignores {sorted(ignored)}: their gradients would have no noise")
    trainable = [p for p in model.module.parameters() if p.requires_grad]
    for parameter in trainable:
        if parameter.dtype != torch.float32 or not parameter.is_cpu:
            raise UsageError(
                f"a parameter is {parameter.dtype} on {parameter.device}: the private step takes "
                "float32 on the CPU"
            )
    group = model.process_group
    comm = group.comm if isinstance(group, ProcessGroup) else from_process_group(group)
    size = sum(parameter.numel() for parameter in trainable)
    step = PrivateStep(
        comm, size, clip_norm, noise_multiplier, expected_batch, unsafe_seed=unsafe_seed
    )
    model.register_comm_hook(_Buckets(step), _private_hook)
    return step


class _Buckets:
    """Takes a step bucket by bucket: DDP hands them out in the same order on every rank."""

    def __init__(self, step: PrivateStep) -> None:
        self._step, self._number, self._begin = step, 0, 0

    def begin(self, index: int, buffer: Tensor) -> torch.futures.Future[Any]:
        if index == 0:
            self._number, self._begin = self._step.begin(), 0
        number, offset = self._number, self._begin
        self._begin += buffer.numel()
        begun = Work(buffer)
        self._step.comm.submit(begun.run, lambda: self._step.part(buffer, number, offset))
        return begun.get_future()


# Without annotations: torch compares them, as objects, with its own.
def _private_hook(state, bucket):  # type: ignore[no-untyped-def]
    return state.begin(bucket.index(), bucket.buffer())
