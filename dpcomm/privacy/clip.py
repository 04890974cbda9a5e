"""Clip per-sample gradients and sum them, in one pass over memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpcomm import _core, arrays, cuda
from dpcomm.privacy.clipping import ClipRule, as_rule

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
    if view.contiguous:
        return view.pointer, columns, columns
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


def _checked(grads: Any | Sequence[Any]) -> tuple[Any, list[arrays.Array]]:
    """The first of the gradients, and views of all."""
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
    return several[0], views


def _clip_on_gpu(like: Any, views: list[arrays.Array], rule: ClipRule) -> Clipped:
    """By a norm for each array, all are read once before, to learn which samples are finite."""
    blocks = [_rows(view) for view in views]
    total, samples, nonfinite = cuda.clip_sum(like, views[0], blocks, rule.norms[0], rule.stability)
    if len(rule.norms) == 1:
        return Clipped(total, samples, nonfinite, rule.sensitivity)
    torch = sys.modules["torch"]
    totals, all_norms = [], []
    for view, block, norm in zip(views, blocks, rule.norms, strict=True):
        total, norms, _ = cuda.clip_sum(like, view, [block], norm, rule.stability, samples)
        totals.append(total)
        all_norms.append(norms)
    return Clipped(torch.cat(totals), torch.stack(all_norms, 1), nonfinite, rule.sensitivity)


def clip_sum(
    grads: Any | Sequence[Any], clip_norm: float | ClipRule, *, threads: int = 1
) -> Clipped:
    """Clips each sample's gradient to L2 norm `clip_norm` and sums the samples.

    grads: [B, …], or a list of such, one for each parameter, which are read in place and clipped
        together, by the norm over all of them. float32, bfloat16 or float16, on the CPU or a GPU.
    clip_norm: a number, or a ClipRule: with a stability it scales every sample (automatic
        clipping); with a norm for each array of the list it clips each by its own (per layer), and
        the norms returned are [B, arrays].

    Returns sums, not means: divide by the expected batch size after the noise. No sample adds more
    than `clip_norm`, to the last bit of float32; one with a NaN or an infinity, be it in one array,
    adds nothing to any, and is counted. An empty batch gives zeros. The bits do not depend on
    `threads`.

    Raises ValueError for another dtype, device or layout, for a clip norm that is not positive, and
    for norms that are not one for each array.
    """
    rule = as_rule(clip_norm)
    like, views = _checked(grads)
    first, layers = views[0], len(rule.norms)
    if layers not in (1, len(views)):
        raise ValueError(f"{layers} clip norms for {len(views)} arrays: give one, or one for each")
    if first.device != "cpu":
        return _clip_on_gpu(like, views, rule)
    blocks = [_rows(view) for view in views]
    rows = first.shape[0]
    total = arrays.empty(like, sum(columns for _, columns, _ in blocks), "float32")
    norms = arrays.empty(like, rows if layers == 1 else (rows, layers), "float64")
    out = arrays.pointer(total), arrays.pointer(norms)
    nonfinite = _core.clip_sum(blocks, rows, first.dtype, rule.core, *out, threads=threads)
    return Clipped(total, norms, nonfinite, rule.sensitivity)
