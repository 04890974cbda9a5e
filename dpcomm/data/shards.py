"""Reads a prepared folder: rows of float32 in memory maps that all ranks of a host share.

Opening checks that the folder is whole (`_SUCCESS`, manifest, the size of each shard) and copies
nothing: pages come in as rows are gathered, and belong to the page cache.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dpcomm import _core

FORMAT = "dpcomm.shards/1"


class ShardError(RuntimeError):
    """The folder is not what its manifest says; the message names the file and the fix."""


@dataclass(frozen=True)
class Dataset:
    """One split. Record i in [0, records) is row i of the shards laid end to end.

    A row holds `features` float32 and then the label, as a float32 that is the code's place in
    `classes`. What preparation spent is in `ledger`; training must count it.
    """

    shards: tuple[np.ndarray, ...]
    starts: np.ndarray
    manifest: dict[str, Any]

    @property
    def records(self) -> int:
        return int(self.starts[-1])

    @property
    def columns(self) -> list[str]:
        """The names of the features."""
        return self.manifest["columns"][:-1]

    @property
    def features(self) -> int:
        return len(self.columns)

    @property
    def classes(self) -> list[str]:
        return self.manifest["classes"]

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """What preparation spent, as entries for the ledger that training charges."""
        return self.manifest["privacy"]["ledger"]

    @property
    def warning(self) -> str | None:
        """What training must say at its start: that its epsilon does not cover all."""
        if self.manifest["privacy"]["stats"] != "exact":
            return None
        return "the data were prepared with exact statistics, which epsilon does not cover"

    @cached_property
    def _addresses(self) -> np.ndarray:
        return np.array([shard.ctypes.data for shard in self.shards], np.uintp)

    def gather(
        self, ids: np.ndarray, out: np.ndarray | None = None, *, threads: int = 1
    ) -> np.ndarray:
        """The rows of the records `ids`, in their order: [len(ids), features + 1] float32.

        `out`, of at least that many rows, is filled and its first len(ids) rows returned.
        Raises IndexError for an id outside [0, records), ValueError for an `out` that cannot hold
        the rows.
        """
        ids = np.asarray(ids, np.int64)
        if ids.ndim != 1:
            raise ValueError(f"ids of shape {ids.shape}: pass [records]")
        width = self.features + 1
        if out is None:
            out = np.empty((len(ids), width), np.float32)
        fits = out.shape[1:] == (width,) and len(out) >= len(ids) and out.dtype == np.float32
        if not (fits and out.flags.c_contiguous and out.flags.writeable):
            raise ValueError(
                f"out of shape {out.shape} in {out.dtype} for {len(ids)} records: "
                f"pass np.empty(({len(ids)}, {width}), np.float32), or more rows"
            )
        _core.gather(self._addresses, self.starts, 4 * width, ids, out.ctypes.data, threads)
        return out[: len(ids)]

    def rows(self, begin: int = 0, end: int | None = None) -> np.ndarray:
        """The rows of records begin to end, copied (not, where one shard holds them all)."""
        end = self.records if end is None else end
        if not 0 <= begin <= end <= self.records:
            raise IndexError(f"records {begin} to {end} are outside [0, {self.records})")
        parts = [
            shard[max(begin - start, 0) : max(end - start, 0)]
            for shard, start in zip(self.shards, self.starts, strict=False)
        ]
        parts = [part for part in parts if len(part)] or [self.shards[0][:0]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def load(folder: str | Path, split: str = "train", verify: bool = False) -> Dataset:
    """Maps the split "train" or "test" of a prepared folder; raises ShardError.

    `verify` also checks the SHA-256 of every shard, which reads it whole.
    """
    if re.match(r"[A-Za-z][\w+.-]*:/", str(folder)):  # a Path has one slash of hdfs://
        raise ShardError(f"{folder} is not on this machine: copy it to a disk that ranks can map")
    folder = Path(folder)
    contents = manifest(folder)
    if not contents["splits"].get(split):
        raise ShardError(
            f"{folder} has no records in its split {split!r}; name it in [split] of the schema, "
            "as test = 0.2, and prepare the data again"
        )
    columns = len(contents["columns"])
    shards = []
    for entry in contents["splits"][split]:
        path = folder / entry["file"]
        if not path.exists():
            raise ShardError(f"{path} is missing; prepare the data again")
        if path.stat().st_size != entry["bytes"]:
            raise ShardError(
                f"{path} has {path.stat().st_size} bytes, its manifest says {entry['bytes']};"
                " prepare the data again"
            )
        if verify and _sha256(path) != entry["sha256"]:
            raise ShardError(f"{path} is not what was written: its SHA-256 differs")
        shape = (entry["records"], columns)
        shards.append(np.memmap(path, contents["dtype"], "r", shape=shape).view(np.ndarray))
    starts = np.cumsum([0, *(len(shard) for shard in shards)])
    return Dataset(tuple(shards), starts, contents)


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a whole prepared folder; raises ShardError for any other."""
    try:
        seal = (folder / "_SUCCESS").read_text().strip()
        text = (folder / "manifest.json").read_bytes()
    except FileNotFoundError as error:
        raise ShardError(
            f"{folder} is no prepared folder, or a half-written one: {Path(error.filename).name}"
            f" is missing; run python -m dpcomm.data.prepare INPUT {folder} --schema FILE.toml"
        ) from None
    if hashlib.sha256(text).hexdigest() != seal:
        raise ShardError(f"{folder}/manifest.json was changed after it was published")
    contents = json.loads(text)
    if contents.get("format") != FORMAT:
        raise ShardError(f"{folder} has format {contents.get('format')!r}, this reads {FORMAT!r}")
    return contents


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
