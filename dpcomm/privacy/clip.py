"""Clip per-sample gradients and sum them, in one pass over memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpcomm import _core, arrays, cuda

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Clipped:
    """The sum of clipped gradients, and what the noise and the log need to know of it."""

    total: Any  # float32 [P]
    # float64 [B], or [B, layers], before clipping; NaN or infinite where the sample is
    norms: Any
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


def _checked(grads: Any | Sequence[Any]) -> tuple[list[Any], list[arrays.Array]]:
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
    return several, views


def _clip(
    like: Any, views: list[arrays.Array], clip_norm: float, stabilizer: float | None, threads: int
) -> tuple[Any, Any, Any]:
    """Total, norms and the count of non-finite samples; automatic where there is a stabilizer."""
    first = views[0]
    blocks = [_rows(view) for view in views]
    if first.device != "cpu":
        return cuda.clip_sum(like, first, blocks, clip_norm, stabilizer)
    total = arrays.empty(like, (sum(columns for _, columns, _ in blocks),), "float32")
    norms = arrays.empty(like, (first.shape[0],), "float64")
    nonfinite = _core.clip_sum(
        blocks,
        first.shape[0],
        first.dtype,
        clip_norm,
        stabilizer,
        arrays.describe(total).pointer,
        arrays.describe(norms).pointer,
        threads=threads,
    )
    return total, norms, nonfinite


def _clip_each(
    several: list[Any], views: list[arrays.Array], clip_norms: float | Sequence[float], threads: int
) -> Clipped:
    if isinstance(clip_norms, (int, float)) or len(clip_norms) != len(several):
        raise ValueError(
            f"clip_norm={clip_norms!r} for {len(several)} arrays clipped per layer: "
            "pass a sequence of one number for each"
        )
    parts = [
        _clip(grad, [view], clip_norm, None, threads)
        for grad, view, clip_norm in zip(several, views, clip_norms, strict=True)
    ]
    totals, norms, _ = zip(*parts, strict=True)
    library: Any = np if isinstance(norms[0], np.ndarray) else sys.modules["torch"]
    stacked = library.stack(norms, 1)
    nonfinite = (~library.isfinite(stacked)).any(1).sum()
    return Clipped(
        library.concatenate(totals),
        stacked,
        nonfinite if views[0].device != "cpu" else int(nonfinite),
        math.hypot(*clip_norms),
    )


def clip_sum(
    grads: Any | Sequence[Any],
    clip_norm: float | Sequence[float],
    *,
    clipping: str = "flat",
    stabilizer: float = 0.01,
    threads: int = 1,
) -> Clipped:
    """Clips each sample's gradient to L2 norm `clip_norm` and sums the samples.

    grads: [B, …], or a list of such, one for each parameter, which are read in place and clipped
        together, by the norm over all of them. float32, bfloat16 or float16, on the CPU or a GPU.
    clipping: "flat" scales a sample by min(1, clip_norm / norm). "automatic" scales every sample to
        about the same length, by clip_norm / (norm + stabilizer) (Bu, Wang, Zha and Karypis 2022,
        https://arxiv.org/abs/2206.07136). "per_layer" clips each array of the list by its own norm
        (McMahan et al. 2018, https://arxiv.org/abs/1710.06963) to its own number of `clip_norm`, a
        sequence: the norms are [B, arrays] then, and the sensitivity is the root of the numbers'
        summed squares.

    Returns sums, not means: divide by the expected batch size after the noise. No sample adds more
    than `clip_norm`, to the last bit of float32; one with a NaN or an infinity adds nothing, of an
    array where it has one if clipping is per layer, and is counted. An empty batch gives zeros. The
    bits do not depend on `threads`.

    Raises ValueError for another dtype, device or layout, for a clip norm that is not positive, and
    for as many clip norms as there are not arrays.
    """
    several, views = _checked(grads)
    if clipping == "per_layer":
        return _clip_each(several, views, clip_norm, threads)
    if clipping not in ("flat", "automatic"):
        raise ValueError(f"clipping={clipping!r}: pass flat, automatic or per_layer")
    if not isinstance(clip_norm, (int, float)):
        raise ValueError(
            f"clip_norm={clip_norm!r} with clipping={clipping!r}: pass one number, "
            'or clipping="per_layer"'
        )
    rule = clip_norm, stabilizer if clipping == "automatic" else None
    return Clipped(*_clip(several[0], views, *rule, threads), clip_norm)
