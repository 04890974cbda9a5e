"""Linear layers on the CPU that take one row a sample: norms and clipping in one native call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpcomm import _core
from dpcomm.privacy.clipping import ClipRule


@dataclass(frozen=True)
class ClippedMatrices:
    """Of each layer the rows whose products sum to the clipped gradient: gradientsᵀ · inputs for
    its weight, the sum of `gradients` for its bias. Samples that are not finite have none."""

    inputs: list[Tensor]  # [kept, d]
    gradients: list[Tensor]  # [kept, o], scaled by the samples' factors
    norms: Tensor  # [B] float64, before clipping
    nonfinite: int


def clip_matrices(
    layers: Sequence[tuple[Tensor, Tensor, bool]], rule: ClipRule, scale: float = 1.0
) -> ClippedMatrices:
    """layers: of each its inputs [B, d], the gradients of its outputs [B, o], both float32 on the
        CPU, and whether it has a bias.
    rule: of one norm, or of one for each of them.
    scale: what the gradients are multiplied by first.

    Raises UsageError for a rule of another number of norms.
    """
    samples = len(layers[0][0])
    norms = torch.empty(samples, dtype=torch.float64)
    inputs, gradients, uses = [], [], []
    for layer_inputs, layer_gradients, bias in layers:
        a, g = _rows(layer_inputs), _rows(layer_gradients)
        clipped = torch.empty(g.shape)
        uses.append(
            (a.data_ptr(), a.shape[1], a.stride(0), g.data_ptr(), g.shape[1], g.stride(0), bias,
             clipped.data_ptr())
        )  # fmt: skip
        inputs.append(a)
        gradients.append(clipped)
    nonfinite = _core.ghost_clip(uses, samples, scale, rule.core, norms.data_ptr(), 1)
    if nonfinite:  # left out, not scaled: 0·NaN is NaN
        kept = norms.isfinite()
        inputs, gradients = [a[kept] for a in inputs], [g[kept] for g in gradients]
    return ClippedMatrices(inputs, gradients, norms, nonfinite)


def _rows(matrix: Tensor) -> Tensor:
    """The same, with rows that lie without gaps, apart from each other as they may be."""
    gaps = matrix.shape[1] > 1 and matrix.stride(1) != 1
    return matrix.contiguous() if gaps else matrix
