"""Linear layers on the CPU that take one row a sample: norms, clipping and the sums of the clipped
gradients in one native call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dpcomm import _core
from dpcomm._core import UsageError
from dpcomm.privacy.clipping import ClipRule


class LayerSums(NamedTuple):
    """Where the gradients of a linear layer are added up, float32 without gaps."""

    weight: Tensor  # [o, d]
    bias: Tensor | None  # [o]


class MatrixSums:
    """Adds up the clipped gradients of some layers. Holds scratch: one call at a time."""

    def __init__(self, layers: Sequence[LayerSums]) -> None:
        self.layers = layers
        self.threads = torch.get_num_threads()
        places = [
            (layer.weight.shape[1], layer.weight.shape[0], layer.weight.data_ptr(),
             0 if layer.bias is None else layer.bias.data_ptr())
            for layer in layers
        ]  # fmt: skip
        self._core = _core.GhostSum(places, self.threads)

    def add(
        self,
        uses: Sequence[tuple[Tensor, Tensor]],
        samples: int,
        rule: ClipRule,
        scale: float = 1.0,
        fresh: bool = False,
    ) -> tuple[Tensor, int]:
        """Adds to the sums, which if `fresh` count as zero, those of `scale` times the samples'
        gradients, clipped by the rule: of one norm, or of one for each layer.

        uses: of each layer its input [samples, d] and the gradient of its output [samples, o],
            float32 on the CPU.

        Returns the norms over all layers before clipping, [samples] float64, and how many samples
        were left out since theirs was not finite. The same bits for any number of threads. Raises
        UsageError for a rule of another number of norms, and for other tensors.
        """
        for use in uses:
            if any(x.dtype != torch.float32 or not x.is_cpu for x in use):
                told = " and ".join(f"{x.dtype} on {x.device}" for x in use)
                raise UsageError(f"a layer was used with {told}: give float32 on the CPU")
        norms = torch.empty(samples, dtype=torch.float64)
        held = [(_rows(a), _rows(g)) for a, g in uses]  # until the call is over
        places = [(a.data_ptr(), a.stride(0), g.data_ptr(), g.stride(0)) for a, g in held]
        core_rule, pointer = rule.core, norms.data_ptr()
        return norms, self._core.add(places, samples, scale, core_rule, pointer, not fresh)


def _rows(matrix: Tensor) -> Tensor:
    """The same, with rows that lie without gaps, apart from each other as they may be."""
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] == 1 else matrix.contiguous()
