"""Bad input: each kind has its message, and none loses or invents a record. On both engines."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dpcomm.data import pums, shards, store
from dpcomm.data.prepare import prepare
from dpcomm.data.schema import DataError, Schema, from_dict, load

HEADER, *LINES = pums.generate(200, seed=9, dirt=False).splitlines()
Run = Callable[..., dict]


@pytest.fixture(params=["polars", "spark"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Prepares the given bytes; returns the counts of the manifest."""
    spark = request.getfixturevalue("spark") if request.param == "spark" else None

    def prepare_bytes(content: bytes, schema: Schema | None = None, output: str = "") -> dict:
        (tmp_path / "raw.csv").write_bytes(content)
        output = output or str(tmp_path / "out")
        manifest = prepare(
            str(tmp_path / "raw.csv"), output, schema or load("pums"), spark=spark, shards=2
        )
        counts = manifest["counts"]
        assert counts["kept"] == sum(
            shards.load(output, split).records for split in ("train", "test")
        )
        return counts

    return prepare_bytes


def text(*lines: bytes) -> bytes:
    return b"\n".join([*lines, b""])


def pums_with(**changes: object) -> Schema:
    return from_dict({**load("pums").source, **changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "raw.csv is empty"),
        (b"\n", "the first line is empty"),
        (text(HEADER), "a header but no record"),
        (text(HEADER, *LINES).replace(b",", b";"), r"no ',' in it; set format.delimiter = ';'"),
        (text(*LINES), r"header lacks personid.*format.header = false"),
        (text(HEADER.replace(b",educ,", b","), *LINES), "the header lacks educ; it has personid"),
        (text(HEADER.replace(b",educ,", b",age,"), *LINES), "names a column twice: age"),
        (text(HEADER, *(line + b",1" for line in LINES)), r"none of 200 .*too many fields \(200\)"),
        (text(HEADER, *(line[:-1] + b"1" for line in LINES)), "employed is constant .* '1'"),
    ],
)
def test_input_that_cannot_be_right(run: Run, tmp_path: Path, content: bytes, message: str):
    with pytest.raises(DataError, match=message):
        run(content)
    with pytest.raises(shards.ShardError, match="no prepared folder"):
        shards.load(tmp_path / "out")


def test_absent_input_is_named(run: Run, tmp_path: Path):
    with pytest.raises(DataError, match="no input at"):
        run(text(HEADER, *LINES), pums_with(split={"files": {"train": "no", "test": "no"}}))


BAD_LINES = [
    (LINES[0].replace(b",6,", b",\xff,", 1), "line: not UTF-8"),
    (b'"' + LINES[0], "line: quote not closed"),
    (LINES[0] + b"0" * 100_000_000, "line: longer than 1048576 bytes"),
    (LINES[0] + b",1", "line: too many fields"),
    (b"", "line: too few fields"),
    (b'9,"6,6",1', "line: too few fields"),
    (b"1,6,60100,0,190,15,0,0,0,0,1,1,0,1,1,1", "age: out of range"),
    (b"1,6,60100,0,40.5,15,0,0,0,0,1,1,0,1,1,1", "age: not a whole number"),
    (b"1,6,60100,0,nan,15,0,0,0,0,1,1,0,1,1,1", "age: not a number"),
    (b"1,6,60100,0,1e400,15,0,0,0,0,1,1,0,1,1,1", "age: not a number"),
    (b"1,6,60100,x,40,15,0,0,0,0,1,1,0,1,1,1", "sex: unknown code"),
    (b"1,6,60100,,40,15,0,0,0,0,1,1,0,1,1,1", "sex: missing"),
    (b",6,60100,1,40,15,0,0,0,0,1,1,0,1,1,1", "personid: missing"),
    (b"1" * 65 + b",6,60100,1,40,15,0,0,0,0,1,1,0,1,1,1", "personid: longer than 64 bytes"),
    (LINES[1], "personid: more than 1 of a unit"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_line_that_cannot_be_a_record(tmp_path: Path, line: bytes, reason: str):
    (tmp_path / "raw.csv").write_bytes(text(HEADER, *LINES[1:100], line, *LINES[100:]))
    counts = prepare(str(tmp_path / "raw.csv"), str(tmp_path / "out"), load("pums"))["counts"]
    assert counts["dropped"] == {reason: 1}
    assert (counts["read"], counts["kept"]) == (200, 199)


def test_every_bad_line_at_once(run: Run):
    counts = run(text(HEADER, *LINES[1:100], *(line for line, _ in BAD_LINES), *LINES[100:]))
    assert counts["dropped"] == Counter(reason for _, reason in BAD_LINES)
    assert (counts["read"], counts["kept"]) == (199 + len(BAD_LINES), 199)


def test_what_is_no_fault(run: Run):
    """A BOM, Windows' line ends, quotes, spaces, a repeated header, and no newline at the end."""
    quoted = b",".join(b'"' + field + b'"' for field in LINES[3].split(b","))
    spaced = LINES[4].replace(b",", b" , ")
    lines = [HEADER, *LINES[:3], quoted, spaced, HEADER, *LINES[5:]]
    counts = run(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    assert counts == {"read": 200, "kept": 200, "dropped": {}, "repaired": {}, "imputed": {}}


def test_invalid_value_can_be_repaired(run: Run):
    columns = dict(load("pums").source["columns"])
    columns["age"] = {**columns["age"], "invalid": "missing"}
    lines = [
        b"x1,6,60100,0,190,15,0,0,0,0,1,1,0,1,1,1",
        b"x2,6,60100,0,1e99,15,0,0,0,0,1,1,0,1,1,1",
    ]
    counts = run(text(HEADER, *LINES, *lines), pums_with(columns=columns))
    assert counts["kept"] == 202
    assert counts["repaired"] == {"age: out of range": 2}
    assert counts["imputed"] == {"age: missing": 2}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_disk_that_fills_up(run: Run, tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(store.WriteError, match="No space left on device"):
            run(text(HEADER, *LINES), output=str(disk / "out"))
        with pytest.raises(shards.ShardError, match="half-written"):
            shards.load(disk / "out")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_shard_that_did_not_arrive_whole_is_not_published(run: Run, tmp_path: Path, monkeypatch):
    """As where a worker's disk is not the driver's."""
    begin = store.publish

    def spoilt(job, *others):
        file = tmp_path / "out" / "train-00001.bin"
        file.write_bytes(file.read_bytes()[:-4])
        return begin(job, *others)

    monkeypatch.setattr(store, "publish", spoilt)
    with pytest.raises(store.WriteError, match=r"out lacks train-00001.bin, .*workers share"):
        run(text(HEADER, *LINES))
    assert not (tmp_path / "out" / "_SUCCESS").exists()
