"""Paths that only Hadoop knows, through a viewfs:// that is mounted on a local folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpcomm.data import shards, store
from dpcomm.data.prepare import prepare
from dpcomm.data.schema import DataError, load

ROOT = "viewfs://test/data"
WORKER = """
from dpcomm.data.store import open_folder
filesystem, folder = open_folder("viewfs://conf/data/out", {})
filesystem.create_dir(folder)
with filesystem.open_output_stream(f"{folder}/train-00000.bin") as file:
    file.write(b"rows")
"""


@pytest.fixture
def output(mounted: Path, spark) -> Path:
    folder = mounted / "out"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Without the checksums that Hadoop keeps beside the files of a local disk."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.endswith(".crc")}


def test_input_and_output_are_hadoop_paths(spark, raw, prepared, mounted, output):
    shutil.copy(raw, mounted / "raw.csv")
    manifest = prepare(
        f"{ROOT}/raw.csv", f"{ROOT}/out", load("pums"), spark=spark, parquet=True, shards=2
    )
    assert manifest["counts"] == shards.manifest(prepared)["counts"]
    prepare(raw, str(output.with_name("local")), load("pums"), parquet=True, shards=2)
    assert files(output) == files(output.with_name("local"))
    with pytest.raises(DataError, match="viewfs://test/data/out is prepared already"):
        prepare(raw, f"{ROOT}/out", load("pums"), spark=spark)


def test_the_manifest_and_the_seal_come_last(spark, raw, output, monkeypatch):
    moves, opened = [], []
    from dpcomm.data.hadoop import Hadoop

    move, open_output_stream = Hadoop.move, Hadoop.open_output_stream

    def seen(self, source, to):
        moves.append((Path(to).name, sorted(p.name for p in output.glob("[!.]*"))))
        move(self, source, to)

    def opening(self, path):
        opened.append(Path(path).name)
        return open_output_stream(self, path)

    monkeypatch.setattr(Hadoop, "move", seen)
    monkeypatch.setattr(Hadoop, "open_output_stream", opening)
    output.mkdir()
    (output / "_SUCCESS").write_text("of another manifest")
    prepare(raw, f"{ROOT}/out", load("pums"), spark=spark, shards=1, overwrite=True)
    [(name, before)] = moves
    assert name == "manifest.json"
    assert before == ["_temporary", "test-00000.bin", "train-00000.bin"]
    assert opened == ["manifest", "_SUCCESS"]


def test_a_half_written_folder_is_refused_and_written_anew(spark, raw, output):
    hadoop = {"fs.viewfs.mounttable.test.link./data": f"file://{output.parent}"}
    job = store.Job(load("pums"), f"{ROOT}/out", 1, hadoop=hadoop)
    store.begin(job, overwrite=False)
    assert list(output.iterdir()) == [output / "_temporary"]
    with pytest.raises(shards.ShardError, match="half-written"):
        shards.load(output)
    filesystem, folder = job.open()
    for content in (b"first", b"again"):  # as by a task that is run twice
        with filesystem.open_output_stream(f"{folder}/_temporary/x") as file:
            file.write(content)
        filesystem.move(f"{folder}/_temporary/x", f"{folder}/train-00000.bin")
    assert (output / "train-00000.bin").read_bytes() == b"again"
    with pytest.raises(OSError, match="does not exist"):
        filesystem.move(f"{folder}/_temporary/x", f"{folder}/train-00000.bin")
    prepare(raw, f"{ROOT}/out", load("pums"), spark=spark, shards=1)
    assert shards.load(output, verify=True).records > 0


def test_what_cannot_be_reached_is_named(spark, raw, tmp_path):
    with pytest.raises(DataError, match="no input at viewfs://test/data/none"):
        prepare(f"{ROOT}/none", str(tmp_path / "out"), load("pums"), spark=spark)
    with pytest.raises(OSError, match="elsewhere"):
        prepare(raw, "viewfs://elsewhere/out", load("pums"), spark=spark)
    with pytest.raises(DataError, match=r"raw.csv is Hadoop's: .*--engine spark"):
        prepare("viewfs://test/data/raw.csv", str(tmp_path / "out"), load("pums"))
    with pytest.raises(shards.ShardError, match="viewfs://test/data/out is not on this machine"):
        shards.load(f"{ROOT}/out")


def test_a_worker_takes_the_settings_of_hadoop_conf_dir(tmp_path):
    """It has no session: viewfs://conf stands in the files alone."""
    (tmp_path / "core-site.xml").write_text(
        "<configuration><property><name>fs.viewfs.mounttable.conf.link./data</name>"
        f"<value>file://{tmp_path}</value></property></configuration>"
    )
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        env={**os.environ, "HADOOP_CONF_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "train-00000.bin").read_bytes() == b"rows"
