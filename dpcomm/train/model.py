"""The model that is trained, its loss, and what is measured of it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpcomm._core import UsageError
from dpcomm.data.shards import Dataset
from dpcomm.privacy.sampling import share
from dpcomm.torch import evaluating
from dpcomm.train.options import Options

_ROWS = 8192  # evaluated at once


def make_model(options: Options, features: int, classes: int) -> nn.Module:
    """The user's, or an MLP, with weights by the options' seed. Raises as the functions below."""
    torch.manual_seed(options.seed)
    if options.model:
        module = load_model(options.model, features, classes)
    else:
        module = mlp(features, classes, options.hidden)
    check_outputs(module, features, classes)
    return module


def mlp(features: int, classes: int, hidden: tuple[int, ...]) -> nn.Module:
    """Linear layers with tanh between them, whose bounded outputs bound gradients, and so suit
    clipping better than ReLU (Papernot et al. 2021). Two classes have one output, the logit."""
    sizes = [features, *hidden]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], _outputs(classes)))


def load_model(reference: str, features: int, classes: int) -> nn.Module:
    """The module that `package.module:factory` makes of (features, classes).

    Raises UsageError where there is no such factory, or what it makes is no module.
    """
    name, _, factory = reference.partition(":")
    sys.path.insert(0, str(Path.cwd()))  # as python -m does for scripts of one's own
    try:
        make = getattr(importlib.import_module(name), factory)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"--model {reference}: {error}: give a module that can be imported from "
            f"{Path.cwd()}, and a function of it that takes (features, classes)"
        ) from error
    made = make(features, classes)
    if not isinstance(made, nn.Module):
        raise UsageError(f"--model {reference} made a {type(made).__name__}, not a torch module")
    return made


def check_outputs(module: nn.Module, features: int, classes: int) -> None:
    """Raises UsageError unless a batch of two gives [2, outputs] with one output a class."""
    with torch.no_grad():
        shape = tuple(module(torch.zeros(2, features)).shape)
    expected = (2, _outputs(classes))
    if shape != expected:
        raise UsageError(
            f"the model turns [2, {features}] into {list(shape)}: {classes} classes need "
            f"{list(expected)} logits"
        )


def losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each sample, [B], from logits [B, outputs] and classes [B] as float32."""
    if outputs.shape[1] == 1:
        return nn.functional.binary_cross_entropy_with_logits(
            outputs[:, 0], labels, reduction="none"
        )
    return nn.functional.cross_entropy(outputs, labels.long(), reduction="none")


def _outputs(classes: int) -> int:
    return 1 if classes == 2 else classes


def evaluate(comm: Any, module: nn.Module, data: Dataset) -> dict[str, float]:
    """Accuracy, the majority class's share, and the AUC of two classes. Collective."""
    begin, end = share(data.records, comm.rank, comm.size)
    correct = 0
    labels = np.zeros(data.records, np.float32)
    scores = np.zeros(data.records, np.float32)
    with evaluating(module), torch.no_grad():
        for first, rows in _batches(data, begin, end):
            outputs = module(torch.from_numpy(rows[:, :-1]))
            truth = torch.from_numpy(rows[:, -1])
            score = outputs[:, 0] if outputs.shape[1] == 1 else outputs[:, -1] - outputs[:, 0]
            chosen = (score > 0).long() if outputs.shape[1] == 1 else outputs.argmax(1)
            correct += int((chosen == truth.long()).sum())
            scores[first : first + len(rows)] = score.numpy()
            labels[first : first + len(rows)] = truth.numpy()
    # Each rank filled in its own part, and zeros elsewhere.
    comm.all_reduce(scores)
    comm.all_reduce(labels)
    total = comm.all_reduce(np.array([correct], np.int64))
    measured = {
        "accuracy": float(total[0]) / data.records,
        "majority": float(np.bincount(labels.astype(np.int64)).max()) / data.records,
    }
    if len(data.classes) == 2:
        measured["auc"] = auc(scores, labels)
    return measured


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve by the Mann-Whitney statistic; ties count half."""
    from scipy.stats import rankdata

    positive = labels > 0.5
    p, n = int(positive.sum()), int((~positive).sum())
    if p == 0 or n == 0:
        return float("nan")
    return float((rankdata(scores)[positive].sum() - p * (p + 1) / 2) / (p * n))


def _batches(data: Dataset, begin: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
    for first in range(begin, end, _ROWS):
        yield first, data.gather(np.arange(first, min(first + _ROWS, end)))
