"""The kernels as torch operators, which torch.compile, make_fx and CUDA graphs see through.

    torch.ops.dpcomm.clip_sum(grads, clip_norm)          # importing this module defines them

The functions below call them. They are for code that is traced; elsewhere dpcomm.clip_sum and
dpcomm.add_noise_ do the same with less overhead. No operator has a gradient: they come after the
backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dpcomm.privacy import clip, noise

_library = torch.library.Library("dpcomm", "DEF")
_library.define(
    "clip_sum(Tensor[] grads, float clip_norm) -> (Tensor total, Tensor norms, Tensor nonfinite)"
)
_library.define(
    "add_noise_(Tensor(a!) buffer, float std, str key, int step, int offset=0, "
    "str generator='chacha20', float scale=1.0) -> ()"
)


def clip_sum(grads: Tensor | Sequence[Tensor], clip_norm: float) -> tuple[Tensor, Tensor, Tensor]:
    """`dpcomm.clip_sum` as an operator: the total, the norms, and the count as a tensor []."""
    several = [grads] if isinstance(grads, Tensor) else list(grads)
    return torch.ops.dpcomm.clip_sum(several, clip_norm)


def add_noise_(
    buffer: Tensor,
    std: float,
    key: str,
    step: int,
    offset: int = 0,
    generator: str = "chacha20",
    scale: float = 1.0,
) -> Tensor:
    """`dpcomm.add_noise_` as an operator, with the key in hexadecimal: operators take no bytes.

    A traced graph holds key and step as constants: trace anew for another step, and never run one
    graph twice.
    """
    torch.ops.dpcomm.add_noise_(buffer, std, key, step, offset, generator, scale)
    return buffer


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
    step: int,
    offset: int = 0,
    generator: str = "chacha20",
    scale: float = 1.0,
) -> None:
    noise.add_noise_(buffer, std, bytes.fromhex(key), step, offset, generator, scale=scale)


for _device in ("CPU", "CUDA"):
    _library.impl("clip_sum", _clip_sum, _device)
    _library.impl("add_noise_", _add_noise_, _device)
torch.library.register_fake("dpcomm::clip_sum", _fake_clip_sum, lib=_library)
torch.library.register_fake("dpcomm::add_noise_", lambda *_, **__: None, lib=_library)
