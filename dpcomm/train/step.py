"""One training step, from the number of a batch to updated parameters: natively where the model
fits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from dpcomm.data.shards import Dataset
from dpcomm.privacy.mlp import Mlp, Records
from dpcomm.privacy.optimizer import NativeStep, ShardedOptimizer
from dpcomm.privacy.sampling import poisson_sample
from dpcomm.torch import ClippedGradient, FlatParameters, linear_chain
from dpcomm.train.model import losses

logger = logging.getLogger("dpcomm")

Step = Callable[[int], int]


@dataclass(frozen=True)
class Batches:
    """Poisson batches: their numbers decide, by a key that all ranks share."""

    data: Dataset
    key: bytes
    sample_rate: float
    begin: int  # to end: the records that are this rank's
    end: int


def training_step(
    module: nn.Module,
    parameters: FlatParameters,
    batches: Batches,
    clip_norm: float | None,
    update: ShardedOptimizer,
    threads: int,
) -> Step:
    """A function of a batch's number that trains on it, collectively, and returns how many of this
    rank's samples were left out for a gradient that is not finite.

    A chain of linear layers takes the native step; anything else goes through torch.
    `clip_norm=None` neither clips nor counts.
    """
    data, rate = batches.data, batches.sample_rate
    if layers := linear_chain(module):
        logger.info("a chain of %d linear layers: native step", len(layers))
        loss = "binary_cross_entropy" if layers[-1].outputs == 1 else "cross_entropy"
        records = Records(
            [shard[:, :-1] for shard in data.shards], [shard[:, -1] for shard in data.shards]
        )
        mlp = Mlp(layers, loss, threads=threads)
        return NativeStep(
            update, mlp, records, batches.key, rate, batches.begin, batches.end, clip_norm
        )

    gradient_of = ClippedGradient(module, parameters, losses, clip_norm)

    def general(batch: int) -> int:
        ids = poisson_sample(batches.key, batch, rate, batches.begin, batches.end)
        rows = torch.from_numpy(data.gather(ids))
        nonfinite = gradient_of(rows[:, :-1], rows[:, -1]).nonfinite
        update()
        return nonfinite

    return general
