"""Training on canaries: records that mark one weight each, for dpcomm.audit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dpcomm.data.shards import FORMAT, Dataset
from dpcomm.train.metrics import Summary
from dpcomm.train.options import parse
from dpcomm.train.trainer import Trainer

_LOUD = 10.0  # a canary's one feature: its gradient is longer than the clip norm of 1


class Canaries:
    """side² canaries, each present by a fair coin that rank 0 tosses. Collective.

    Canary (k, j) has the feature j and the class k, in a linear model of `side` features and
    classes that begins at 0: its gradient lies all but whole on weight (k, j). One that is absent
    is a record of zeros, whose gradient is zero, so that the number of records is no secret.
    """

    def __init__(self, comm: Any, side: int) -> None:
        self.comm, self.side = comm, side
        tossed = np.random.default_rng().integers(0, 2, side * side, np.uint8)
        self.present = comm.broadcast(tossed).astype(bool)  # [side²], class by class

    def train(
        self, *, steps: int, sample_rate: float, noise_multiplier: float
    ) -> tuple[np.ndarray, Summary]:
        """One run of the trainer: each canary's mark on the model, float64 [side²], and the run's
        summary. Collective."""
        with tempfile.TemporaryDirectory() as folder:
            options = parse(
                [
                    f"--steps={steps}",
                    f"--sample-rate={sample_rate}",
                    f"--noise-multiplier={noise_multiplier}",
                    "--clip-norm=1",
                    "--model=dpcomm.train.canaries:linear",
                    "--optimizer=sgd",
                    "--lr=1",  # over thousands of expected records: logits stay near 0
                    f"--checkpoint={Path(folder, 'checkpoint.pt')}",
                ]
            )
            data = self._records()
            trainer = Trainer(self.comm, options, train=data, test=data)
            summary = trainer.train()
        weights = trainer.parameters.values.detach().double().numpy()
        weights = weights.reshape(self.side, self.side)
        # A canary also moves the other weights of its feature, all alike, through the softmax.
        return (weights - weights.mean(0)).ravel(), summary

    def _records(self) -> Dataset:
        side = self.side
        rows = np.zeros((side * side, side + 1), np.float32)
        canary = np.arange(side * side)
        rows[canary, canary % side] = _LOUD * self.present
        rows[:, side] = canary // side
        manifest = {
            "format": FORMAT,
            "columns": [*(f"x{j}" for j in range(side)), "class"],
            "classes": [str(k) for k in range(side)],
            "privacy": {
                "unit": "canary",
                "records_per_unit": 1,
                "stats": "public",
                "ledger": [],
            },
        }
        return Dataset((rows,), np.array([0, len(rows)]), manifest)


def linear(features: int, classes: int) -> nn.Module:
    """Logits of a linear model without bias, at 0."""
    layer = nn.Linear(features, classes, bias=False)
    nn.init.zeros_(layer.weight)
    return nn.Sequential(layer)
