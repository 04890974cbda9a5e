"""A picture of a run: what it learned and what that cost, against steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from dpcomm.train.metrics import Measured


def save(rows: Sequence[Measured], path: Path) -> None:
    """Accuracy, AUC and ε against steps, as an image file; its ending decides the format."""
    figure, quality = plt.subplots(figsize=(7, 4.2), layout="constrained")
    steps = [row.step for row in rows]
    lines = quality.plot(steps, [row.accuracy for row in rows], marker="o", markersize=3)
    names = ["accuracy (test records)"]
    areas = [row.auc for row in rows if row.auc is not None]
    if len(areas) == len(rows):
        lines += quality.plot(steps, areas, marker="o", markersize=3)
        names.append("AUC (test records)")
    quality.set(xlabel="step", ylabel="accuracy, AUC")
    quality.grid(alpha=0.3)
    epsilons = [row.epsilon for row in rows if row.epsilon is not None]
    if len(epsilons) == len(rows):
        spent = quality.twinx()
        lines += spent.plot(steps, epsilons, color="black", linestyle="--")
        names.append("ε spent")
        spent.set(ylabel="ε", ylim=(0, None))
    quality.legend(lines, names, loc="lower right", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
