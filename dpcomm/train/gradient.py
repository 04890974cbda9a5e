"""From record ids to the sum of their clipped gradients, natively where the model fits."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from dpcomm import arrays
from dpcomm.data.shards import Dataset
from dpcomm.privacy.mlp import Mlp, Records
from dpcomm.torch import ClippedGradient, FlatParameters, linear_chain
from dpcomm.train.model import losses

logger = logging.getLogger("dpcomm")

Source = Callable[[np.ndarray], int]


def gradient_source(
    module: nn.Module,
    parameters: FlatParameters,
    data: Dataset,
    clip_norm: float | None,
    threads: int,
) -> Source:
    """A function of int64 ids [B] that writes the sum of those records' clipped gradients into the
    flat gradient, and returns how many were left out for not being finite.

    A chain of linear layers takes the native step, which gathers the records itself; anything else
    goes through torch. `clip_norm=None` neither clips nor counts.
    """
    if layers := linear_chain(module):
        logger.info("a chain of %d linear layers: native step", len(layers))
        loss = "binary_cross_entropy" if layers[-1].outputs == 1 else "cross_entropy"
        mlp = Mlp(layers, loss, threads=threads)
        records = Records(
            [shard[:, :-1] for shard in data.shards], [shard[:, -1] for shard in data.shards]
        )
        values = arrays.describe(parameters.values)
        total = arrays.describe(parameters.gradient)

        def native(ids: np.ndarray) -> int:
            if clip_norm is None:
                return mlp.gradient_sum(values, records, total, ids=ids).nonfinite
            return mlp.clipped_sum(values, records, clip_norm, total, ids=ids).nonfinite

        return native

    gradient_of = ClippedGradient(module, parameters, losses, clip_norm)

    def general(ids: np.ndarray) -> int:
        rows = torch.from_numpy(data.gather(ids))
        return gradient_of(rows[:, :-1], rows[:, -1]).nonfinite

    return general
