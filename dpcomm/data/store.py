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
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from dpcomm.data import keys as keys_
from dpcomm.data.clean import Cleaned, Counts, record_dtype
from dpcomm.data.encode import Transformation
from dpcomm.data.schema import DataError, Schema

SPLITS = ("train", "test")
COUNTS = -1  # the split of a row that carries counts instead of a record
ROW = pa.schema(
    [("shard", pa.int32()), ("split", pa.int32()), ("key", pa.int64()), ("payload", pa.binary())]
)


class WriteError(RuntimeError):
    """The output could not be written, and was not published."""


Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # splits, keys, records; sorted, equal lengths


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
    """What workers need to know. Picklable."""

    schema: Schema
    output: str
    shards: int = 8
    parquet: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= 99999:
            raise DataError(f"shards is between 1 and 99999, not {self.shards}")

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

    def rows(self, cleaned: Cleaned, split: str | None) -> pa.RecordBatch:
        """Cleaned records as rows to be shuffled by shard and sorted by (split, key, payload)."""
        keys, size = cleaned.keys, cleaned.records.dtype.itemsize
        offsets = np.arange(0, (len(keys) + 1) * size, size, dtype=np.int32)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(cleaned.records.tobytes())]
        payload = pa.Array.from_buffers(pa.binary(), len(keys), buffers)
        columns = [self.shard_of(keys), self.split_of(keys, split), keys, payload]
        return pa.record_batch(columns, schema=ROW)

    def count_row(self, counts: Counts) -> pa.RecordBatch:
        """Counts travel with the records, so that a task run twice is counted once."""
        payload = json.dumps(counts.to_dict()).encode()
        row = {"shard": 0, "split": COUNTS, "key": 0, "payload": payload}
        return pa.RecordBatch.from_pylist([row], schema=ROW)

    def write_shard(
        self, shard: int, batches: Iterable[Batch], into: Transformation, counts: Counts
    ) -> list[Shard]:
        """Writes the sorted records of one shard, at most one file a split."""
        filesystem, folder = open_folder(self.output)
        written = []
        splits = groupby(bounded(batches, self.schema, counts), key=itemgetter(0))
        try:
            for split, parts in splits:
                writer = _Writer(self, filesystem, folder, f"{split}-{shard:05d}", into)
                for _, records in parts:
                    writer.write(records)
                written.append(writer.close())
        except OSError as error:
            raise WriteError(f"shard {shard} of {self.output}: {error}") from error
        return written


def unpack(rows: Iterable[pa.RecordBatch], schema: Schema, counts: Counts) -> Iterator[Batch]:
    """The records in sorted rows; counts among the rows, which sort first, are added up."""
    dtype = record_dtype(schema)
    for batch in rows:
        begin = int(np.searchsorted(batch.column(1).to_numpy(), 0))
        for payload in batch.column(3).slice(0, begin).to_pylist():
            counts.add(Counts.from_dict(json.loads(payload)))
        _, splits, keys, payload = batch.slice(begin).columns
        yield splits.to_numpy(), keys.to_numpy(), np.frombuffer(content(payload), dtype)


def bounded(
    batches: Iterable[Batch], schema: Schema, counts: Counts
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (split, records) of sorted batches, at most `records_per_unit` of each unit.

    `counts` learns of the records beyond the bound.
    """
    limit = schema.records_per_unit
    last, seen = (-1, -1), 0  # the unit that the batch before ended with, and its records
    for splits, keys, records in batches:
        begin = 0
        for split, name in enumerate(SPLITS):
            end = int(np.searchsorted(splits, split, side="right"))
            unit, part = keys[begin:end], records[begin:end]
            begin = end
            if schema.unit is not None and len(unit):
                first = np.flatnonzero(np.diff(unit, prepend=-1))
                rank = np.arange(len(unit)) - np.repeat(first, np.diff(first, append=len(unit)))
                if (split, unit[0]) == last:
                    rank[: np.searchsorted(unit, unit[0], side="right")] += seen
                last, seen = (split, unit[-1]), int(rank[-1]) + 1
                part = part[rank < limit]
                if excess := int(np.count_nonzero(rank >= limit)):
                    counts.dropped[f"{schema.unit}: more than {limit} of a unit"] += excess
                    counts.kept -= excess
            if len(part):
                yield name, part


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
            # Statistics in a Parquet footer are exact minima and maxima of private values.
            self.paths[f"{attempt}.parquet"] = f"{folder}/{name}.parquet"
            names = [*into.columns, job.schema.target]
            self.parquet = pq.ParquetWriter(
                f"{attempt}.parquet",
                pa.schema([(n, pa.float32()) for n in names]),
                filesystem=filesystem,
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
        for written, final in self.paths.items():
            self.filesystem.move(written, final)
        self.shard.sha256 = self.digest.hexdigest()
        return self.shard


def open_folder(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system and path of a local path or URI; `s3a://`, as Spark says it, is S3."""
    if "://" not in uri and not uri.startswith("file:"):
        return fs.LocalFileSystem(), posixpath.abspath(uri)
    return fs.FileSystem.from_uri(uri.replace("s3a://", "s3://", 1))


def begin(job: Job, overwrite: bool) -> None:
    """Makes the output folder; unpublishes what it holds before any of that is touched."""
    filesystem, folder = open_folder(job.output)
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
    filesystem, folder = open_folder(job.output)
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
