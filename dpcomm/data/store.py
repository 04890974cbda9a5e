"""The output side that every engine shares: order, contribution bound, shards, publication.

A prepared folder holds `train-00000.bin`, …, `manifest.json` and `_SUCCESS`. A shard is an array
[records, features + 1] of little-endian float32, row by row, the label last: one gather and one
page of memory serve a record and its label. Files appear under their names only when whole, the
manifest comes after all of them, and `_SUCCESS`, which holds the manifest's SHA-256, comes last.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import socket
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from dpcomm.data import keys as keys_
from dpcomm.data import stats
from dpcomm.data.clean import Cleaned, Counts, record_dtype
from dpcomm.data.encode import Transformation
from dpcomm.data.schema import DataError, Schema

SPLITS = ("train", "test")
COUNTS = -1  # the split of a row that carries counts instead of a record
CHUNK = 1 << 16  # records encoded at a time
_SCHEME = re.compile(r"([A-Za-z][\w+.-]*):/")
_SPOKEN = ("s3a", "s3", "gs", "gcs", "abfs", "abfss")  # what pyarrow serves by itself
ROW = pa.schema(
    [("shard", pa.int32()), ("split", pa.int32()), ("keys", pa.binary()), ("records", pa.binary())]
)


_ONE_PLACE = "name an OUTPUT that driver and workers share: a common disk, or a path like hdfs://"


class WriteError(RuntimeError):
    """The output could not be written, and was not published."""


@dataclass(frozen=True)
class Part:
    """Records of one shard and split, in any order, and their keys."""

    split: str
    keys: np.ndarray
    records: np.ndarray


@dataclass
class Shard:
    """One written file and what went into it."""

    split: str
    file: str
    records: int = 0
    sha256: str = ""
    labels: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Job:
    """What workers need to know. Picklable. `output` means the same to each of them; `hadoop` are
    settings for a file system of Hadoop's."""

    schema: Schema
    output: str
    shards: int = 8
    parquet: bool = False
    hadoop: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= 99999:
            raise DataError(f"shards is between 1 and 99999, not {self.shards}")

    def open(self) -> tuple[fs.FileSystem, str]:
        """The file system and path of the output."""
        return open_folder(self.output, self.hadoop)

    def sources(self, place: str) -> list[tuple[str | None, str]]:
        """Where to read what: (split, path), the split None where a hash decides it."""
        files = self.schema.split.files
        if not files:
            return [(None, place)]
        return [(split, f"{place.rstrip('/')}/{files[split]}") for split in SPLITS]

    def check_columns(self, names: list[str], place: str) -> None:
        """Refuses Parquet that lacks a column of the schema."""
        if lacking := [c.name for c in self.schema.columns if c.name not in names]:
            raise DataError(f"{place} lacks {', '.join(lacking)}; it has {', '.join(names)}")

    def shard_of(self, keys: np.ndarray) -> np.ndarray:
        return keys_.shard_of(keys, self.shards)

    def split_of(self, keys: np.ndarray, split: str | None) -> np.ndarray:
        """The place in SPLITS of each record: the file's, or else by its key."""
        if split is None:
            return keys_.is_test(keys, self.schema.split.test).astype(np.int32)
        return np.full(len(keys), SPLITS.index(split), np.int32)

    def parts(self, cleaned: Cleaned, split: str | None) -> Iterator[tuple[int, Part]]:
        """Cleaned records by shard and split."""
        keys = cleaned.keys
        place = self.shard_of(keys) * len(SPLITS) + self.split_of(keys, split)
        order = np.argsort(place.astype(np.uint32), kind="stable")
        ends = np.searchsorted(place[order], np.arange(self.shards * len(SPLITS) + 1))
        keys, records = keys[order], _take(cleaned.records, order)
        for i, (a, b) in enumerate(pairwise(ends)):
            if a < b:
                shard, name = divmod(i, len(SPLITS))
                yield shard, Part(SPLITS[name], keys[a:b], records[a:b])

    def rows(self, cleaned: Cleaned, split: str | None) -> pa.RecordBatch:
        """The parts as rows to be shuffled: many records a row, for Spark's cost is by the row."""
        columns: list[list[Any]] = [[], [], [], []]
        for shard, part in self.parts(cleaned, split):
            row = (shard, SPLITS.index(part.split), part.keys.tobytes(), part.records.tobytes())
            for column, value in zip(columns, row, strict=True):
                column.append(value)
        return pa.record_batch(
            [pa.array(c, f.type) for c, f in zip(columns, ROW, strict=True)], ROW
        )

    def count_row(self, counts: Counts) -> pa.RecordBatch:
        """Counts travel with the records, so that a task run twice is counted once."""
        text = json.dumps(counts.to_dict()).encode()
        row = {"shard": 0, "split": COUNTS, "keys": b"", "records": text}
        return pa.RecordBatch.from_pylist([row], schema=ROW)

    def unpack(self, batch: pa.RecordBatch, counts: Counts) -> Iterator[tuple[int, Part]]:
        """The parts in rows; counts among them are added up."""
        dtype = record_dtype(self.schema)
        for row in batch.to_pylist():
            if row["split"] == COUNTS:
                counts.add(Counts.from_dict(json.loads(row["records"])))
            else:
                keys = np.frombuffer(row["keys"], np.int64)
                records = np.frombuffer(row["records"], dtype)
                yield row["shard"], Part(SPLITS[row["split"]], keys, records)

    def tallies(self, parts: Iterable[Part]) -> stats.Tallies:
        """What the statistics need of one shard: of its training records, bounded per unit."""
        train = (part for part in parts if part.split == "train")
        records = (records for _, records in ordered(train, self.schema, Counts()))
        return stats.tallies(records, self.schema)

    def write_shard(
        self, shard: int, parts: Iterable[Part], into: Transformation, counts: Counts
    ) -> list[Shard]:
        """Sorts and writes the records of one shard, a file for each split; `counts` learns of
        records beyond the bound of their unit."""
        written = []
        try:
            filesystem, folder = self.open()
            for split, records in ordered(parts, self.schema, counts):
                writer = _Writer(self, filesystem, folder, f"{split}-{shard:05d}", into)
                for begin in range(0, len(records), CHUNK):
                    writer.write(records[begin : begin + CHUNK])
                written.append(writer.close())
        except FileNotFoundError as error:
            raise WriteError(
                f"shard {shard}: {self.output} is not on {socket.gethostname()}; {_ONE_PLACE}"
            ) from error
        except OSError as error:
            raise WriteError(f"shard {shard} of {self.output}: {error}") from error
        return written


def ordered(
    parts: Iterable[Part], schema: Schema, counts: Counts
) -> Iterator[tuple[str, np.ndarray]]:
    """The records of a shard, split by split, ordered by key and then by their bytes, at most
    `records_per_unit` of each unit."""
    parts = list(parts)
    for split in SPLITS:
        own = [part for part in parts if part.split == split]
        if not own:
            continue
        keys = np.concatenate([part.keys for part in own])
        records = np.concatenate([part.records for part in own])
        order = np.argsort(keys, kind="stable")
        keys, records = keys[order], _take(records, order)
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        sizes = np.diff(first, append=len(keys))
        for i in np.flatnonzero(sizes > 1):
            run = slice(first[i], first[i] + sizes[i])
            records[run] = sorted(records[run], key=np.void.tobytes)
        if schema.unit is not None:
            rank = np.arange(len(keys)) - np.repeat(first, sizes)
            kept = rank < schema.records_per_unit
            if excess := int(np.count_nonzero(~kept)):
                counts.dropped[f"{schema.unit}: more than {schema.records_per_unit} of a unit"] += (
                    excess
                )
                counts.kept -= excess
                records = records[kept]
        yield split, records


def _take(records: np.ndarray, order: np.ndarray) -> np.ndarray:
    """`records[order]`, moved as whole bytes instead of field by field."""
    return records.view(f"V{records.dtype.itemsize}")[order].view(records.dtype)


def content(column: pa.Array) -> pa.Buffer:
    """The bytes of a binary column, end to end."""
    width = np.dtype("<i8" if pa.types.is_large_binary(column.type) else "<i4")
    _, offsets, data = column.buffers()
    if not len(column) or data is None:
        return pa.py_buffer(b"")
    ends = np.frombuffer(offsets, width)[column.offset : column.offset + len(column) + 1]
    return data.slice(int(ends[0]), int(ends[-1] - ends[0]))


class _Writer:
    """Writes one shard under a name of its own and moves it into place when it is whole."""

    def __init__(
        self, job: Job, filesystem: fs.FileSystem, folder: str, name: str, into: Transformation
    ) -> None:
        self.shard = Shard(name.split("-")[0], f"{name}.bin")
        self.filesystem, self.folder, self.transformation = filesystem, folder, into
        attempt = f"{folder}/_temporary/{uuid.uuid4().hex}"
        self.paths = {f"{attempt}.bin": f"{folder}/{name}.bin"}
        self.file = filesystem.open_output_stream(f"{attempt}.bin")
        self.digest = hashlib.sha256()
        self.codes = job.schema[job.schema.target].codes
        self.parquet = None
        if job.parquet:
            self.columns = filesystem.open_output_stream(f"{attempt}.parquet")
            # Statistics in a Parquet footer are exact minima and maxima of private values.
            self.paths[f"{attempt}.parquet"] = f"{folder}/{name}.parquet"
            names = [*into.columns, job.schema.target]
            self.parquet = pq.ParquetWriter(
                self.columns,
                pa.schema([(n, pa.float32()) for n in names]),
                write_statistics=False,
            )

    def write(self, records: np.ndarray) -> None:
        rows = self.transformation.rows(records)
        data = rows.tobytes()
        self.file.write(data)
        self.digest.update(data)
        self.shard.records += len(rows)
        for code, times in enumerate(np.bincount(records["target"], minlength=len(self.codes))):
            self.shard.labels[self.codes[code]] += int(times)
        if self.parquet is not None:
            columns = [np.ascontiguousarray(column) for column in rows.T]
            self.parquet.write(pa.Table.from_arrays(columns, schema=self.parquet.schema))

    def close(self) -> Shard:
        self.file.close()
        if self.parquet is not None:
            self.parquet.close()
            self.columns.close()
        for written, final in self.paths.items():
            self.filesystem.move(written, final)
        self.shard.sha256 = self.digest.hexdigest()
        return self.shard


def absolute(place: str) -> str:
    """A place that means the same to every process: a path without a scheme is local."""
    local = place.removeprefix("file:") if place.startswith("file:/") else place
    return place if _SCHEME.match(local) else posixpath.normpath(posixpath.abspath(local))


def open_folder(place: str, hadoop: Mapping[str, str]) -> tuple[fs.FileSystem, str]:
    """The file system and path of an absolute place; `s3a://`, as Spark says it, is S3. Raises
    OSError."""
    if not _SCHEME.match(place):
        return fs.LocalFileSystem(), place
    if not is_hadoop(place):
        return fs.FileSystem.from_uri(place.replace("s3a:", "s3:", 1).rstrip("/"))
    from dpcomm.data.hadoop import Hadoop

    return Hadoop(place, hadoop), place.rstrip("/")


def is_hadoop(place: str) -> bool:
    """Whether only Hadoop's client reaches an absolute place."""
    scheme = _SCHEME.match(place)
    return scheme is not None and scheme[1] not in _SPOKEN


def begin(job: Job, overwrite: bool) -> None:
    """Makes the output folder; unpublishes what it holds before any of that is touched."""
    filesystem, folder = job.open()
    held = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    names = {info.base_name for info in held}
    if foreign := [n for n in names if not n.startswith(("_", "manifest.json", *SPLITS))]:
        raise DataError(f"{job.output} holds {min(foreign)}, which is not ours; name a new folder")
    if "_SUCCESS" in names and not overwrite:
        raise DataError(f"{job.output} is prepared already; give --overwrite to replace it")
    for info in sorted(held, key=lambda info: info.base_name != "_SUCCESS"):
        if info.type == fs.FileType.Directory:
            filesystem.delete_dir(info.path)
        else:
            filesystem.delete_file(info.path)
    filesystem.create_dir(f"{folder}/_temporary")


def publish(
    job: Job, shards: list[Shard], counts: Counts, into: Transformation, privacy: dict[str, Any]
) -> dict[str, Any]:
    """Checks that the output can be right, writes the manifest, then `_SUCCESS`."""
    filesystem, folder = job.open()
    schema = job.schema
    if counts.kept == 0:
        if counts.read == 0:
            raise DataError("the input has a header but no record")
        reasons = ", ".join(f"{reason} ({n})" for reason, n in counts.dropped.most_common(3))
        raise DataError(f"none of {counts.read} records is valid: {reasons}")
    labels: Counter[str] = Counter()
    for shard in shards:
        if shard.split == "train":
            labels.update(shard.labels)
    if len(+labels) < 2:
        raise DataError(
            f"the target {schema.target} is constant over the {labels.total()} training records:"
            f" always {next(iter(+labels), None)!r}"
        )
    if (written := sum(shard.records for shard in shards)) != counts.kept:
        raise AssertionError(f"{counts.kept} records were kept but {written} written")
    row = 4 * (len(into.columns) + 1)
    for shard in shards:
        if filesystem.get_file_info(f"{folder}/{shard.file}").size != shard.records * row:
            raise WriteError(f"{job.output} lacks {shard.file}, which was written; {_ONE_PLACE}")
    manifest = {
        "format": "dpcomm.shards/1",
        "name": schema.name,
        "dtype": "<f4",
        "columns": [*into.columns, schema.target],
        "classes": list(schema[schema.target].codes),
        "embeddings": into.embeddings,
        "splits": {
            split: [
                {"file": s.file, "records": s.records, "bytes": s.records * row, "sha256": s.sha256}
                for s in sorted(shards, key=lambda shard: shard.file)
                if s.split == split
            ]
            for split in SPLITS
        },
        "counts": counts.to_dict(),
        "privacy": {
            "unit": schema.unit or "record",
            "records_per_unit": schema.records_per_unit,
            **privacy,
        },
        "transformation": into.to_dict(),
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False).encode()
    with filesystem.open_output_stream(f"{folder}/_temporary/manifest") as file:
        file.write(text)
    filesystem.move(f"{folder}/_temporary/manifest", f"{folder}/manifest.json")
    filesystem.delete_dir(f"{folder}/_temporary")
    with filesystem.open_output_stream(f"{folder}/_SUCCESS") as file:
        file.write(hashlib.sha256(text).hexdigest().encode())
    return manifest
