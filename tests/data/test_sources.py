"""The two data sets: the real one is what it was, the generated one is reproducible."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter

import numpy as np
import pytest

from dpcomm.data import census, pums, shards
from dpcomm.data.prepare import prepare
from dpcomm.data.schema import DataError, load


def test_same_seed_same_bytes():
    digest = hashlib.sha256(pums.generate(5_000, seed=1)).hexdigest()
    assert digest == "eda188e4ad8f6e4be6273d71fdf02ee81eddb7534e99b894a9881b5c8048b4c3"
    assert hashlib.sha256(pums.generate(5_000, seed=2)).hexdigest() != digest


def test_generated_records_follow_the_facts():
    rows = list(csv.DictReader(pums.generate(50_000, seed=0, dirt=False).decode().splitlines()))
    column = {name: np.array([int(row[name]) for row in rows]) for name in rows[0]}
    for name, share in {
        "sex": 0.516, "employed": 0.59, "uscitizen": 0.8, "englishability": 0.86,
        "disability": 0.21, "militaryservice": 0.11,
    }.items():  # fmt: skip
        assert column[name].mean() == pytest.approx(share, abs=0.01), name
    assert np.corrcoef(column["educ"], column["latino"])[0, 1] == pytest.approx(-0.453, abs=0.04)
    assert column["age"].min() == 18
    assert column["age"].max() == 93


def test_generated_dirt_has_its_shares():
    lines = pums.generate(50_000, seed=0).decode().splitlines()
    assert Counter(lines)[lines[0]] == 25
    fields = [line.split(",") for line in lines]
    whole = [f for f in fields if len(f) == 16]
    assert len(whole) / len(fields) == pytest.approx(1 - 0.0005, abs=0.0004)
    assert np.mean([f[6] in ("", "NA") for f in whole]) == pytest.approx(0.03, abs=0.003)


def test_another_archive_is_refused(tmp_path):
    archive = tmp_path / census.ARCHIVE
    archive.write_bytes(b"something else")
    with pytest.raises(DataError, match="do not use it"):
        census.unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_census_records_are_all_valid_and_weightless(tmp_path):
    """Records drawn from the schema itself, for the real files are not shipped."""
    schema = load("census")
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(300):
        values = [
            str(rng.integers(c.range[0], c.range[1] + 1)) if c.range
            else str(rng.choice(c.codes)) if c.codes else "1700.09"
            for c in schema.columns
        ]  # fmt: skip
        rows.append(", ".join(values))
    for name in census.FILES.values():
        (tmp_path / name).write_text("\n".join(rows) + "\n")
    manifest = prepare(str(tmp_path), str(tmp_path / "out"), schema)
    assert manifest["counts"]["kept"] == 600
    assert not any("weight" in name for name in manifest["columns"])
    train, test = (shards.load(tmp_path / "out", split) for split in ("train", "test"))
    assert (train.rows() == test.rows()).all()
