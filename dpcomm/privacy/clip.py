"""Clip per-sample gradients and sum them, in one pass over memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpcomm import _core, arrays, cuda

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Clipped:
    """The sum of clipped gradients, and what the noise and the log need to know of it."""

    total: Any  # float32 [P]
    norms: Any  # float64 [B], before clipping; NaN or infinite where the sample is
    nonfinite: Any  # how many samples were left out for a NaN or an infinity; on a GPU a tensor []
    sensitivity: float  # the most that adding or removing one sample moves the total, in L2 norm


def _rows(view: arrays.Array) -> tuple[int, int, int]:
    """Address, columns and row stride of [B, …] gradients whose samples lie without gaps."""
    columns = math.prod(view.shape[1:])
    inner = 1
    for size, stride in zip(reversed(view.shape[1:]), reversed(view.strides[1:]), strict=True):
        if size != 1 and stride != inner and view.count:
            raise ValueError(
                f"gradients of shape {view.shape} have strides {view.strides}: "
                "each sample must lie in memory without gaps; pass grads.contiguous() or a copy"
            )
        inner *= size
    stride = view.strides[0] if view.shape[0] > 1 else columns
    if stride < 0:
        raise ValueError(
            f"gradients have the row stride {stride}: pass a copy of the reversed rows"
        )
    return view.pointer, columns, stride


def clip_sum(grads: Any | Sequence[Any], clip_norm: float, *, threads: int = 1) -> Clipped:
    """Clips each sample's gradient to L2 norm `clip_norm` and sums the samples.

    grads: [B, …], or a list of such, one for each parameter, which are read in place and clipped
        together, by the norm over all of them. float32, bfloat16 or float16, on
        the CPU or a GPU.

    Returns sums, not means: divide by the expected batch size after the noise. No sample adds more
    than `clip_norm`, to the last bit of float32; one with a NaN or an infinity adds nothing and is
    counted. An empty batch gives zeros. The bits do not depend on `threads`.

    Raises ValueError for another dtype, device or layout, or a clip norm that is not positive.
    """
    several = list(grads) if isinstance(grads, (list, tuple)) else [grads]
    if not several:
        raise ValueError("an empty list of gradients: pass one [B, …] array for each parameter")
    views = [arrays.describe(grad) for grad in several]
    first = views[0]
    for view in views:
        if view.dtype not in DTYPES:
            raise ValueError(f"gradients of dtype {view.dtype}: pass one of {', '.join(DTYPES)}")
        if not view.shape:
            raise ValueError("gradients without a sample dimension: pass [B, …]")
        if (view.shape[0], view.dtype, view.device) != (
            first.shape[0],
            first.dtype,
            first.device,
        ):
            raise ValueError(
                f"gradients of {view.shape[0]} samples in {view.dtype} on {view.device} beside "
                f"{first.shape[0]} in {first.dtype} on {first.device}: "
                "pass the same for each parameter"
            )
    blocks = [_rows(view) for view in views]
    if first.device != "cpu":
        return Clipped(*cuda.clip_sum(several[0], first, blocks, clip_norm), clip_norm)
    total = arrays.empty(several[0], (sum(columns for _, columns, _ in blocks),), "float32")
    norms = arrays.empty(several[0], (first.shape[0],), "float64")
    nonfinite = _core.clip_sum(
        blocks,
        first.shape[0],
        first.dtype,
        clip_norm,
        arrays.describe(total).pointer,
        arrays.describe(norms).pointer,
        threads=threads,
    )
    return Clipped(total, norms, nonfinite, clip_norm)
