"""What a training run can go on from: a file that is whole or not there."""

from __future__ import annotations

import io
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpcomm._core import UsageError
from dpcomm.comm import shared_bytes
from dpcomm.privacy.optimizer import ShardedOptimizer

_FORMAT = "dpcomm.checkpoint/3"


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps. Holds no key: a resumed run draws another."""

    run: str  # the ledger's name of this run
    step: int
    model: dict[str, Any]  # state_dict
    optimizer: dict[str, Any]  # ShardedOptimizer.state_dict, whole
    clip_norm: float | None  # of the next step, which an adaptive one has moved; None: no privacy
    plan: dict[str, Any] | None
    ledger: str

    def save(self, path: Path) -> None:
        """Replaces the file at `path` in one move, after its content is on the disk."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        with open(new, "wb") as file:
            torch.save({"format": _FORMAT} | asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)

    def restore(self, model: nn.Module, optimizer: ShardedOptimizer, path: Path) -> None:
        """Collective; raises UsageError, which names the file, for another model or optimizer."""
        try:
            model.load_state_dict(self.model)
            optimizer.adopt()
            optimizer.load_state_dict(self.optimizer)
        except (RuntimeError, ValueError) as error:
            raise UsageError(
                f"--resume: {path} does not fit the model or the optimizer: {error}: give the "
                "--model, --hidden and --optimizer that it was trained with"
            ) from error


def set_aside(path: Path) -> None:
    """Makes room for a new run, but keeps the last one's models, which cost ε: as `path`.old."""
    for old in (path, best(path)):
        if old.exists():
            os.replace(old, old.with_name(old.name + ".old"))


def best(path: Path) -> Path:
    """Where the checkpoint of the run's best evaluation lies, beside the last one at `path`."""
    return path.with_name(f"{path.stem}.best{path.suffix}")


def load(comm: Any, path: Path) -> Checkpoint:
    """Rank 0's file, on every rank. Collective; raises UsageError where there is none."""
    content = b""
    if comm.rank == 0 and path.exists():
        content = path.read_bytes()
    content = shared_bytes(comm, content)
    if not content:
        raise UsageError(
            f"--resume: there is no checkpoint {path}: start without --resume, or name the "
            "checkpoint with --checkpoint"
        )
    values = torch.load(io.BytesIO(content), weights_only=True)
    if values.pop("format", None) != _FORMAT:
        raise UsageError(f"--checkpoint {path} is not a {_FORMAT}: was it written by dpcomm.train?")
    return Checkpoint(**values)
