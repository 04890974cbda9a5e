"""Learning rates over a run, by the schedulers of torch."""

from __future__ import annotations

import torch
from torch.optim import lr_scheduler


def learning_rates(schedule: str, lr: float, steps: int, warmup: int = 0) -> list[float]:
    """The rate of each of `steps` steps: what it is depends on nothing else, so that a run that
    resumes goes on where it was.

    The first `warmup` climb to `lr` in a line. Over the rest, "constant" stays there, "linear" and
    "cosine" fall to 0 behind the last, and "step" falls to a tenth after each third.
    """
    optimizer = torch.optim.SGD([torch.zeros(())], lr)
    left = max(1, steps - warmup)
    after = {
        "constant": lambda: lr_scheduler.ConstantLR(optimizer, 1.0),
        "linear": lambda: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, left),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, left),
        "step": lambda: lr_scheduler.StepLR(optimizer, -(-left // 3), 0.1),
    }[schedule]()
    scheduler: lr_scheduler.LRScheduler = after
    if warmup:
        climb = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), 1.0, warmup)
        scheduler = lr_scheduler.SequentialLR(optimizer, [climb, after], [warmup])
    rates = []
    for _ in range(steps):
        rates.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return rates
