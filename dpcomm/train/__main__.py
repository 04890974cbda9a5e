"""`python -m dpcomm.train`: see options.py for the flags."""

from __future__ import annotations

import logging
import sys

from dpcomm import accounting, launch
from dpcomm._core import UsageError
from dpcomm.train.options import Options, parse


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
    from dpcomm.train.trainer import Trainer, save_summary

    summary = Trainer(comm, options).train()
    if comm.rank != 0:
        return
    save_summary(summary, options.summary)
    print(f"accuracy       {summary.accuracy:.4f} (majority class {summary.majority:.4f})")
    if summary.auc is not None:
        print(f"AUC            {summary.auc:.4f}")
    if summary.epsilon is not None and summary.epsilon_of_ledger is not None:
        print(f"ε              {accounting.show(summary.epsilon)} at δ = {summary.delta:g}")
        if summary.epsilon_of_ledger > summary.epsilon:
            everything = accounting.show(summary.epsilon_of_ledger)
            print(f"               {everything} with all other runs in {summary.ledger}")
    else:
        print("ε              none: trained without privacy")
    print(f"epoch          {summary.epoch_seconds:.2f} s, {summary.step_us:.0f} µs a step")
    print(f"checkpoint     {options.checkpoint}")
    print(f"summary        {options.summary}")


if __name__ == "__main__":
    sys.exit(main())
