"""What a run measures as it goes, JSON lines, and TensorBoard where it is asked for; and what it
says of itself at its end."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dpcomm._core import EnvironmentError


@dataclass(frozen=True)
class Measured:
    """One evaluation. The metrics are of test records; ε is what the ledger holds of this run."""

    step: int
    epoch: float
    epsilon: float | None  # None where nothing is promised
    accuracy: float
    auc: float | None  # of two classes
    seconds: float  # that the steps of this launch took so far

    @property
    def quality(self) -> float:
        """What evaluations are compared by: the AUC of two classes, else the accuracy. Where one
        class is rare, accuracy is that of always naming the other for most of a run."""
        return self.accuracy if self.auc is None or math.isnan(self.auc) else self.auc


@dataclass(frozen=True)
class Summary:
    """What a run says of itself. Nothing in it but the test metrics is computed from records."""

    dataset: str
    ranks: int
    steps: int
    records: int
    sample_rate: float
    noise_multiplier: float
    clip_norm: float | None  # an adaptive one's last
    epsilon: float | None  # of this model; None where nothing is promised
    epsilon_of_ledger: float | None  # of all that the ledger holds
    warning: str | None  # what the data's own preparation left outside of ε
    delta: float | None
    accuracy: float
    auc: float | None
    majority: float  # accuracy of always naming the test records' most frequent class
    epoch_seconds: float
    step_us: float
    parameters: int
    best_step: int  # of the evaluation with the highest AUC or accuracy, whose checkpoint is kept
    best_quality: float  # the AUC of two classes, else the accuracy
    key_hash: str | None
    plan: dict[str, Any] | None
    checkpoint: str
    best_checkpoint: str
    metrics: str
    ledger: str | None


@dataclass(frozen=True)
class Best:
    """The best evaluation of a run so far, and how many came after it."""

    step: int = -1
    quality: float = -math.inf
    since: int = 0

    def after(self, row: Measured) -> Best:
        """The best once `row` was measured."""
        if row.quality > self.quality:
            return Best(row.step, row.quality)
        return replace(self, since=self.since + (row.step != self.step))

    def stale(self, patience: int | None) -> bool:
        """Whether `patience` evaluations brought nothing better."""
        return patience is not None and self.since >= patience


def best_of(rows: Iterable[Measured]) -> Best:
    """The best of a run's evaluations, in their order."""
    best = Best()
    for row in rows:
        best = best.after(row)
    return best


class Metrics:
    """Rank 0's file of a run's evaluations, a JSON object a line.

    A run that is resumed at `step` keeps what was measured until then; a new one begins anew.
    `tensorboard` is a folder for event files, None for none.
    """

    def __init__(self, path: Path, step: int = 0, tensorboard: Path | None = None) -> None:
        self.path = path
        rows = read(path) if step and path.exists() else []
        self.rows = [row for row in rows if row.step <= step]
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_text("".join(_line(row) for row in self.rows))
        os.replace(new, path)
        self._board = _board(tensorboard, step) if tensorboard else None

    def add(self, row: Measured) -> None:
        """Appends an evaluation; not again what was measured before the run was resumed."""
        if self.rows and self.rows[-1].step == row.step:
            return
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(_line(row))
        if self._board:
            for name in ("epsilon", "accuracy", "auc"):
                value = getattr(row, name)
                if value is not None:
                    self._board.add_scalar(name, value, row.step)
            self._board.flush()


def read(path: Path) -> list[Measured]:
    """The evaluations in a file that `Metrics` wrote; a last line torn by a crash is left out."""
    *whole, _ = path.read_text().split("\n")
    return [Measured(**json.loads(line)) for line in whole]


def save_summary(summary: Summary, path: Path) -> None:
    """Writes the record as JSON, whole or not at all. What is infinite or unknown is null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(_finite(summary), indent=1) + "\n")
    os.replace(new, path)


def _line(row: Measured) -> str:
    return json.dumps(_finite(row)) + "\n"


def _finite(record: Measured | Summary) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(record).items()
    }


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise EnvironmentError(
            f"--tensorboard needs the package tensorboard: pip install tensorboard ({error})"
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
