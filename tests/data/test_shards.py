"""A folder is read only if it is whole, and rows come by global id."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dpcomm.data import shards
from dpcomm.data.prepare import prepare
from dpcomm.data.schema import DataError, load


@pytest.fixture(scope="module")
def prepared(raw: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("shards") / "out"
    prepare(raw, str(output), load("pums"), shards=3)
    return output


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy, for tests that spoil it."""
    return Path(shutil.copytree(prepared, tmp_path / "out"))


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


def test_gather_at_the_edges_of_shards(folder):
    train = shards.load(folder)
    whole = train.rows()
    edges = np.concatenate([train.starts[:-1], train.starts[1:] - 1])
    assert len(edges) == 6
    for ids in (edges, edges[::-1], np.repeat(edges, 30)):
        assert (train.gather(ids) == whole[ids]).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 4096])
def test_gather_is_the_same_for_any_threads(folder, count, threads):
    train = shards.load(folder)
    ids = np.random.default_rng(count).integers(train.records, size=count)
    out = np.full((count + 1, 41), -1, np.float32)
    assert (train.gather(ids, out=out, threads=threads) == train.rows()[ids]).all()
    assert (out[count:] == -1).all()


def test_gather_passes_over_an_empty_shard():
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    parts = (rows[:0], rows[:3], rows[3:3], rows[3:], rows[5:])
    starts = np.cumsum([0, *(len(part) for part in parts)])
    dataset = shards.Dataset(parts, starts, {"columns": ["x", "label"]})
    ids = np.array([4, 0, 2, 3])
    assert (dataset.gather(ids) == rows[ids]).all()


@pytest.mark.parametrize("place", [0, 1, 40])
@pytest.mark.parametrize("beyond", [-1, 0, 10**9])
def test_gather_refuses_ids_outside(folder, beyond, place):
    train = shards.load(folder)
    wrong = beyond if beyond < 0 else train.records + beyond
    ids = np.insert(np.arange(40), place, wrong)
    out = np.zeros((41, 41), np.float32)
    with pytest.raises(IndexError, match=rf"record {wrong} is outside \[0, {train.records}\)"):
        train.gather(ids, out=out)
    assert not out.any()


@pytest.mark.parametrize(
    "out",
    [
        np.empty((4, 41), np.float32),
        np.empty((5, 40), np.float32),
        np.empty((5, 41), np.float64),
        np.empty((5, 82), np.float32)[:, ::2],
        np.empty(205, np.float32),
    ],
)
def test_gather_refuses_a_buffer_that_does_not_fit(folder, out):
    with pytest.raises(ValueError, match=r"out of shape .* for 5 records: pass np.empty"):
        shards.load(folder).gather(np.arange(5), out=out)


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
