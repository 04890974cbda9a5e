"""Linear layers on the CPU that take one row a sample: norms, clipping and the sums of the clipped
gradients in one native call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dpcomm import _core
from dpcomm.privacy.clipping import ClipRule


class MatrixUse(NamedTuple):
    """A layer in a pass over B samples, all float32 on the CPU, and the sums of its gradients."""

    input: Tensor  # [B, d]
    gradient: Tensor  # [B, o], of the output
    weight_sum: Tensor  # [o, d], without gaps
    bias_sum: Tensor | None  # [o]


class MatrixSums:
    """Adds up clipped gradients. Holds the scratch between calls: one call at a time."""

    def __init__(self) -> None:
        self._made_for: object = None

    def add(
        self, uses: Sequence[MatrixUse], rule: ClipRule, scale: float = 1.0, fresh: bool = False
    ) -> tuple[Tensor, int]:
        """Adds to each layer's sums, which if `fresh` count as zero, those of `scale` times the
        samples' gradients, clipped by the rule: of one norm, or of one for each of the layers.

        Returns the norms over all layers before clipping, [B] float64, and how many samples were
        left out since theirs was not finite. The same bits for any number of threads. Raises
        UsageError for a rule of another number of norms.
        """
        samples = len(uses[0].input)
        norms = torch.empty(samples, dtype=torch.float64)
        shapes, places, kept = [], [], []
        for use in uses:
            a, g = _rows(use.input), _rows(use.gradient)
            kept += [a, g]  # until the call is over
            shapes.append((a.shape[1], g.shape[1], use.bias_sum is not None))
            bias = 0 if use.bias_sum is None else use.bias_sum.data_ptr()
            places.append(
                (a.data_ptr(), a.stride(0), g.data_ptr(), g.stride(0), use.weight_sum.data_ptr(),
                 bias)
            )  # fmt: skip
        threads = torch.get_num_threads()
        if self._made_for != (shapes, threads):
            self._core = _core.GhostSum(shapes, threads)
            self._made_for = shapes, threads
        nonfinite = self._core.add(places, samples, scale, rule.core, norms.data_ptr(), not fresh)
        return norms, nonfinite


def _rows(matrix: Tensor) -> Tensor:
    """The same, with rows that lie without gaps, apart from each other as they may be."""
    gaps = matrix.shape[1] > 1 and matrix.stride(1) != 1
    return matrix.contiguous() if gaps else matrix
