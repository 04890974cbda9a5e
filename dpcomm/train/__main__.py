"""`python -m dpcomm.train`: see options.py for the flags."""

from __future__ import annotations

import importlib.util
import logging
import sys
from typing import TYPE_CHECKING

from dpcomm import accounting, launch
from dpcomm._core import UsageError
from dpcomm.train.options import Options, parse

if TYPE_CHECKING:
    from dpcomm.train.metrics import Summary


def main() -> int:
    """Trains and reports; 0, or the exit codes of launch.py."""
    logging.basicConfig(format="dpcomm: %(message)s", level=logging.WARNING)
    # Warns of each Rényi order that it leaves out, which only makes ε larger.
    logging.getLogger("absl").setLevel(logging.ERROR)
    with launch.one_voice():
        try:
            options = parse()
        except UsageError as error:
            print(f"dpcomm: {error}", file=sys.stderr)
            return launch.USAGE
    comm = launch.init(transport=options.transport)
    if comm.rank == 0:
        logging.getLogger("dpcomm").setLevel(logging.INFO)
    run(comm, options)
    return 0


def run(comm: launch.Communicator, options: Options) -> None:
    """Everything after the command line, on one rank."""
    from dpcomm.train.metrics import save_summary
    from dpcomm.train.trainer import Trainer

    summary = Trainer(comm, options).train()
    if comm.rank != 0:
        return
    save_summary(summary, options.summary)
    print(f"accuracy       {summary.accuracy:.4f} (majority class {summary.majority:.4f})")
    if summary.auc is not None:
        print(f"AUC            {summary.auc:.4f}")
    print(f"ε              {_told(summary)}")
    if summary.warning:
        print(f"               not in it: {summary.warning}")
    print(f"epoch          {summary.epoch_seconds:.2f} s, {summary.step_us:.0f} µs a step")
    print(f"checkpoint     {options.checkpoint}")
    print(f"best           {_best(summary)}")
    print(f"metrics        {options.metrics}")
    print(f"picture        {_picture(options)}")
    print(f"summary        {options.summary}")


def _best(summary: Summary) -> str:
    name = "accuracy" if summary.auc is None else "AUC"
    return (
        f"{summary.best_checkpoint}, {name} {summary.best_quality:.4f} at step {summary.best_step}"
    )


def _picture(options: Options) -> str:
    if importlib.util.find_spec("matplotlib") is None:
        return "none: pip install matplotlib draws one"
    from dpcomm.train import metrics, plot

    path = options.metrics.with_suffix(".png")
    plot.save(metrics.read(options.metrics), path)
    return str(path)


def _told(summary: Summary) -> str:
    if summary.plan is None:
        return "none: trained without privacy"
    if summary.epsilon is None:
        return "none: noise was drawn from a seed"
    told = f"{accounting.show(summary.epsilon)} at δ = {summary.delta:g}"
    if summary.epsilon_of_ledger is None:
        return f"{told}, but none with all other runs in {summary.ledger}: one drew from a seed"
    if summary.epsilon_of_ledger > summary.epsilon:
        everything = accounting.show(summary.epsilon_of_ledger)
        return f"{told}\n               {everything} with all other runs in {summary.ledger}"
    return told


if __name__ == "__main__":
    sys.exit(main())
