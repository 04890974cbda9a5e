"""A folder is read only if it is whole, and rows come by global id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpcomm.data import shards
from dpcomm.data.prepare import prepare
from dpcomm.data.schema import DataError, load


@pytest.fixture
def folder(raw: str, tmp_path: Path) -> Path:
    prepare(raw, str(tmp_path / "out"), load("pums"), shards=3)
    return tmp_path / "out"


def test_gather_takes_rows_by_global_id(folder):
    train = shards.load(folder)
    whole = train.rows()
    assert whole.shape == (train.records, train.features + 1) == (train.records, 41)
    rng = np.random.default_rng(0)
    for ids in (
        np.arange(train.records),
        rng.integers(train.records, size=1000),
        np.array([train.records - 1, 0, 0]),
        np.array([], np.int64),
    ):
        assert (train.gather(ids) == whole[ids]).all()
    out = np.full((5, 41), -1, np.float32)
    rows = train.gather(np.array([1, 2]), out=out)
    assert np.shares_memory(rows, out)
    assert (rows == whole[1:3]).all()
    assert (out[2:] == -1).all()
    assert (train.rows(10, 7000) == whole[10:7000]).all()


@pytest.mark.parametrize("wrong", [-1, 10**9])
def test_gather_refuses_ids_outside(folder, wrong):
    with pytest.raises(IndexError, match=f"record {wrong} is outside"):
        shards.load(folder).gather(np.array([0, wrong]))


@pytest.mark.parametrize("name", ["_SUCCESS", "manifest.json"])
def test_half_written_output_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(shards.ShardError, match=f"half-written one: {name} is missing"):
        shards.load(folder)


def test_changed_manifest_is_refused(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"stats": "public"', '"stats": "exact"'))
    with pytest.raises(shards.ShardError, match="changed after it was published"):
        shards.load(folder)


def test_shard_cut_short_is_refused(folder):
    shard = folder / "train-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-164])
    with pytest.raises(shards.ShardError, match=r"train-00001.bin has \d+ bytes"):
        shards.load(folder)


def test_shard_with_other_content_is_found_on_request(folder):
    shard = folder / "train-00001.bin"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    shards.load(folder)
    with pytest.raises(shards.ShardError, match="SHA-256 differs"):
        shards.load(folder, verify=True)


def test_missing_shard_and_split_are_named(folder):
    with pytest.raises(shards.ShardError, match="no records in its split 'validation'"):
        shards.load(folder, "validation")
    (folder / "train-00002.bin").unlink()
    with pytest.raises(shards.ShardError, match=r"train-00002.bin is missing"):
        shards.load(folder)


def test_prepared_folder_is_replaced_only_on_request(folder, raw):
    with pytest.raises(DataError, match="--overwrite"):
        prepare(raw, str(folder), load("pums"))
    (folder / "_SUCCESS").unlink()
    prepare(raw, str(folder), load("pums"))
    assert len(list(folder.glob("train-*.bin"))) == 8
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes.txt, which is not ours"):
        prepare(raw, str(folder), load("pums"), overwrite=True)
