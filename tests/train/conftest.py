"""A small prepared folder, in the form that dpcomm.data.prepare writes."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from dpcomm.train.options import parse

FEATURES, TRAIN, TEST = 6, 3000, 1000
RATE, SIGMA = 0.05, 1.1


def write_folder(folder, train, test, privacy=None):
    """Rows [records, features + 1], the label last; three shards and one."""
    folder.mkdir(parents=True)
    splits = {"train": np.array_split(train, 3), "test": [test]}
    manifest = {
        "format": "dpcomm.shards/1",
        "name": "tiny",
        "dtype": "<f4",
        "columns": [*(f"x{i}" for i in range(train.shape[1] - 1)), "label"],
        "classes": ["no", "yes"],
        "splits": {},
        "privacy": {"unit": "record", "records_per_unit": 1, "stats": "public", "ledger": []}
        | (privacy or {}),
    }
    for split, parts in splits.items():
        manifest["splits"][split] = []
        for index, rows in enumerate(parts):
            name, content = f"{split}-{index:05}.bin", rows.astype("<f4").tobytes()
            (folder / name).write_bytes(content)
            entry = {"file": name, "records": len(rows), "bytes": len(content)}
            manifest["splits"][split].append(entry)
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "_SUCCESS").write_text(hashlib.sha256(text).hexdigest())
    return folder


def make_rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(TRAIN + TEST, FEATURES))
    y = x @ rng.normal(size=FEATURES) + 0.5 * rng.normal(size=len(x)) > 0
    rows = np.column_stack([x, y]).astype(np.float32)
    return rows[:TRAIN], rows[TRAIN:]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "tiny", *make_rows())


@pytest.fixture
def options(tiny, tmp_path):
    """Forty private steps on it."""
    return parse(
        f"--data {tiny} --checkpoint {tmp_path}/checkpoint.pt --steps 40 --sample-rate {RATE} "
        f"--noise-multiplier {SIGMA} --clip-norm 0.5 --delta 1e-5 --hidden 8 --lr 0.02 "
        "--accountant rdp".split()
    )
