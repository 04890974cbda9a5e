"""One training step, from the number of a batch to updated parameters: natively where the model
fits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from dpcomm.data.shards import Dataset
from dpcomm.privacy.clipping import Seen, seen
from dpcomm.privacy.mlp import Mlp, Records
from dpcomm.privacy.optimizer import NativeStep, ShardedOptimizer
from dpcomm.privacy.sampling import poisson_sample, truncated_sample
from dpcomm.torch import ClippedGradient, FlatParameters, linear_chain
from dpcomm.train.model import losses

logger = logging.getLogger("dpcomm")

Step = Callable[[int], Seen]


@dataclass(frozen=True)
class Batches:
    """Poisson batches: their numbers decide, by a key that all ranks share."""

    data: Dataset
    key: bytes
    sample_rate: float
    begin: int  # to end: the records that are this rank's
    end: int
    most: int | None = None  # records of a batch over all ranks

    def ids(self, batch: int) -> np.ndarray:
        """This rank's of a batch."""
        if self.most is None:
            return poisson_sample(self.key, batch, self.sample_rate, self.begin, self.end)
        return truncated_sample(self.key, batch, self.sample_rate, self.data.records, self.most,
                                self.begin, self.end)  # fmt: skip


def training_step(
    module: nn.Module,
    parameters: FlatParameters,
    batches: Batches,
    private: bool,
    update: ShardedOptimizer,
    threads: int,
) -> Step:
    """A function of a batch's number that trains on it, collectively, and returns what this rank
    saw of it.

    A chain of linear layers takes the native step; anything else goes through torch. Without
    `private` nothing is clipped or counted.
    """
    data, combine = batches.data, update.step
    if layers := linear_chain(module):
        logger.info("a chain of %d linear layers: native step", len(layers))
        loss = "binary_cross_entropy" if layers[-1].outputs == 1 else "cross_entropy"
        records = Records(
            [shard[:, :-1] for shard in data.shards], [shard[:, -1] for shard in data.shards]
        )
        mlp = Mlp(layers, loss, threads=threads)
        if batches.most is not None:
            return partial(_truncated, batches, mlp, records, parameters, update)
        return NativeStep(
            update, mlp, records, batches.key, batches.sample_rate, batches.begin, batches.end,
            private,
        )  # fmt: skip

    gradient_of = ClippedGradient(module, parameters, losses, combine.rule if private else None)

    def general(batch: int) -> Seen:
        rows = torch.from_numpy(data.gather(batches.ids(batch)))
        gradient_of.rule = combine.rule if private else None
        clipped = gradient_of(rows[:, :-1], rows[:, -1])
        update()
        return seen(clipped.norms, clipped.nonfinite, combine.rule)

    return general


def _truncated(
    batches: Batches,
    mlp: Mlp,
    records: Records,
    parameters: FlatParameters,
    update: ShardedOptimizer,
    batch: int,
) -> Seen:
    """The native step, of a batch that was drawn beforehand."""
    ids, rule = batches.ids(batch), update.step.rule
    norms = np.empty(len(ids))
    values, gradient = parameters.values.detach(), parameters.gradient
    clipped = mlp.clipped_sum(values, records, rule, gradient, ids=ids, norms=norms)
    update()
    return seen(norms, clipped.nonfinite, rule)
