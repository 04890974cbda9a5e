"""Accuracy with and without privacy, beside the majority class: `python benchmarks/accuracy.py`.

Trains the default model on each data set, privately and plainly, on two ranks, with the defaults
of `dpcomm.train`, and writes one record a run to benchmarks/baselines/accuracy.jsonl. Needs
data/census and data/pums-nine, which dpcomm.data.prepare makes. The noise differs from run to run,
and the last digits with it. The census records are real; those of pums-nine are generated, from
facts about real records on which logistic regression with the same nine features reaches 0.645.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND = "mpirun -np 2 python -m dpcomm.train --dataset"
RUNS = ("census", "census --non-private", "pums-nine", "pums-nine --non-private")
FIELDS = ["dataset", "ranks", "steps", "records", "sample_rate", "noise_multiplier", "clip_norm"]
FIELDS += ["epsilon", "delta", "accuracy", "majority", "auc"]


def run(arguments: str, folder: Path) -> dict[str, object]:
    """One training run, and what it says of itself."""
    command = f"{COMMAND} {arguments}"
    checkpoint = folder / arguments.replace(" ", "") / "checkpoint.pt"
    subprocess.run([*command.split(), "--checkpoint", str(checkpoint)], check=True)
    summary = json.loads(checkpoint.with_name("summary.json").read_text())
    return {"command": command} | {name: summary[name] for name in FIELDS}


def main() -> int:
    """Writes the records and prints them."""
    path = Path(__file__).parent / "baselines" / "accuracy.jsonl"
    path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        records = [run(arguments, Path(scratch)) for arguments in RUNS]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    print(path.read_text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
