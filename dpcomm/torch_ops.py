"""The kernels as torch operators, which torch.compile, make_fx and CUDA graphs see through.

    torch.ops.dpcomm.clip_sum(grads, clip_norm)          # importing this module defines them

The functions below call them. They are for code that is traced; elsewhere dpcomm.clip_sum and
dpcomm.add_noise_ do the same with less overhead. No operator has a gradient: they come after the
backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dpcomm.privacy import clip, noise, update

_library = torch.library.Library("dpcomm", "DEF")
_library.define(
    "clip_sum(Tensor[] grads, float clip_norm) -> (Tensor total, Tensor norms, Tensor nonfinite)"
)
_library.define(
    "add_noise_(Tensor(a!) buffer, float std, str key, Tensor(b!) step, int offset=0, "
    "str generator='chacha20', float scale=1.0) -> ()"
)
_NOISE = (
    "float std, str key, Tensor(d!) step, int offset=0, str generator='chacha20', float scale=1.0"
)
_library.define(
    "sgd_update_(Tensor(a!) parameters, Tensor gradient, Tensor(b!)? momentum_buffer=None, *, "
    f"float lr, float momentum=0.0, float weight_decay=0.0, bool nesterov=False, {_NOISE}) -> ()"
)
_library.define(
    "adam_update_(Tensor(a!) parameters, Tensor gradient, Tensor(b!) exp_avg, "
    "Tensor(c!) exp_avg_sq, *, Tensor(e!) count, float lr=0.001, float[] betas=[0.9, 0.999], "
    "float eps=1e-8, float weight_decay=0.0, bool decoupled_weight_decay=False, "
    f"{_NOISE}) -> ()"
)


def clip_sum(grads: Tensor | Sequence[Tensor], clip_norm: float) -> tuple[Tensor, Tensor, Tensor]:
    """`dpcomm.clip_sum` as an operator: the total, the norms, and the count as a tensor []."""
    several = [grads] if isinstance(grads, Tensor) else list(grads)
    return torch.ops.dpcomm.clip_sum(several, clip_norm)


def add_noise_(
    buffer: Tensor,
    std: float,
    key: str,
    step: Tensor,
    offset: int = 0,
    generator: str = "chacha20",
    scale: float = 1.0,
) -> Tensor:
    """`dpcomm.add_noise_` as an operator, with the key in hexadecimal: operators take no bytes.

    step: [] int64 on the buffer's device, raised by one: a graph that ran twice with a constant
        would draw the same noise twice. The key is a constant of the graph: keep no such graph.
    """
    torch.ops.dpcomm.add_noise_(buffer, std, key, step, offset, generator, scale)
    return buffer


def sgd_update_(
    parameters: Tensor,
    gradient: Tensor,
    momentum_buffer: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """`dpcomm.sgd_update_` as an operator, with key and step as in `add_noise_`."""
    torch.ops.dpcomm.sgd_update_(parameters, gradient, momentum_buffer, **settings)
    return parameters


def adam_update_(
    parameters: Tensor, gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, **settings: Any
) -> Tensor:
    """`dpcomm.adam_update_` as an operator, with key and step as in `add_noise_`, and `count` a
    tensor like `step`."""
    torch.ops.dpcomm.adam_update_(parameters, gradient, exp_avg, exp_avg_sq, **settings)
    return parameters


def _clip_sum(grads: list[Tensor], clip_norm: float) -> tuple[Tensor, Tensor, Tensor]:
    clipped = clip.clip_sum(grads, clip_norm)
    nonfinite = torch.as_tensor(clipped.nonfinite, dtype=torch.int64, device=grads[0].device)
    return clipped.total, clipped.norms, nonfinite


def _fake_clip_sum(grads: list[Tensor], clip_norm: float) -> tuple[Tensor, Tensor, Tensor]:
    first = grads[0]
    columns = sum(math.prod(grad.shape[1:]) for grad in grads)
    return (
        first.new_empty((columns,), dtype=torch.float32),
        first.new_empty((first.shape[0],), dtype=torch.float64),
        first.new_empty((), dtype=torch.int64),
    )


def _add_noise_(
    buffer: Tensor,
    std: float,
    key: str,
    step: Tensor,
    offset: int = 0,
    generator: str = "chacha20",
    scale: float = 1.0,
) -> None:
    noise.add_noise_(buffer, std, bytes.fromhex(key), step, offset, generator, scale=scale)


def _sgd_update_(
    parameters: Tensor, gradient: Tensor, momentum_buffer: Tensor | None = None, *, key: str,
    **settings: Any,
) -> None:  # fmt: skip
    update.sgd_update_(parameters, gradient, momentum_buffer, key=bytes.fromhex(key), **settings)


def _adam_update_(
    *tensors: Tensor, key: str, betas: Sequence[float] = (0.9, 0.999), **settings: Any
) -> None:
    beta1, beta2 = betas
    update.adam_update_(*tensors, key=bytes.fromhex(key), betas=(beta1, beta2), **settings)


for _device in ("CPU", "CUDA"):
    _library.impl("clip_sum", _clip_sum, _device)
    _library.impl("add_noise_", _add_noise_, _device)
    _library.impl("sgd_update_", _sgd_update_, _device)
    _library.impl("adam_update_", _adam_update_, _device)
torch.library.register_fake("dpcomm::clip_sum", _fake_clip_sum, lib=_library)
for _in_place in ("add_noise_", "sgd_update_", "adam_update_"):
    torch.library.register_fake(f"dpcomm::{_in_place}", lambda *_, **__: None, lib=_library)
