"""The embedded engine: preparation without a JVM, over one machine's memory and cores.

The cleaning is the same program that Spark's workers run; here threads run it over blocks of the
input. The cleaned records are held in memory (tens of bytes each) until their shard is written.
"""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from dpcomm.data.clean import Cleaner, Counts
from dpcomm.data.encode import Transformation
from dpcomm.data.lines import Layout, layout_of
from dpcomm.data.schema import DataError
from dpcomm.data.store import Job, Part, Shard, is_hadoop, open_folder

BLOCK = 8 << 20  # bytes of text
ROWS = 1 << 16

T = TypeVar("T")
U = TypeVar("U")


def collect(job: Job, source: str) -> tuple[list[list[Part]], Counts]:
    """Cleans the input; returns the records of each shard, and the counts."""
    counts, cleaner = Counts(), Cleaner(job.schema)
    shards: list[list[Part]] = [[] for _ in range(job.shards)]

    def clean(block: Block) -> tuple[Counts, list[tuple[int, Part]]]:
        split, layout, content = block
        cleaned = cleaner.columns(content) if layout is None else cleaner.text(content, layout)
        return cleaned.counts, list(job.parts(cleaned, split))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for own, parts in _ahead(pool, clean, _blocks(job, source)):
            counts.add(own)
            for shard, part in parts:
                shards[shard].append(part)
    return shards, counts


def write(job: Job, shards: list[list[Part]], into: Transformation, counts: Counts) -> list[Shard]:
    """Writes the shards; `counts` learns of records beyond the bound of their unit."""

    def write_one(i: int) -> tuple[list[Shard], Counts]:
        own = Counts()
        return job.write_shard(i, shards[i], into, own), own

    written = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for files, own in pool.map(write_one, range(job.shards)):
            written += files
            counts.add(own)
    return written


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[T], U], items: Iterable[T], depth: int = 4
) -> Iterator[U]:
    """Maps in order, reading no more than `depth` items ahead of what is taken."""
    items = iter(items)
    running = deque(pool.submit(work, item) for item in islice(items, depth))
    while running:
        done = running.popleft().result()
        running.extend(pool.submit(work, item) for item in islice(items, 1))
        yield done


Block = tuple["str | None", "Layout | None", Any]  # split, layout of the lines, lines or table


def _blocks(job: Job, source: str) -> Iterator[Block]:
    """The input in blocks of whole lines or of rows; every file is checked before any is read."""
    fmt = job.schema.format
    names = [column.name for column in job.schema.columns]
    found: list[tuple[str | None, Layout | None, fs.FileSystem, str]] = []
    for split, place in job.sources(source):
        filesystem, files = _files(place, job)
        for file in files:
            layout = None
            if fmt.kind == "parquet":
                columns = pq.read_schema(filesystem.open_input_file(file)).names
                job.check_columns(columns, file)
            else:
                with filesystem.open_input_stream(file) as stream:
                    first = stream.read(fmt.longest_line)
                if not first:
                    raise DataError(f"{file} is empty")
                layout = layout_of(first.split(b"\n", 1)[0], job.schema)
            found.append((split, layout, filesystem, file))
    for split, layout, filesystem, file in found:
        if layout is None:
            reader = pq.ParquetFile(filesystem.open_input_file(file))
            for batch in reader.iter_batches(ROWS, columns=names):
                yield split, None, batch
        else:
            with filesystem.open_input_stream(file) as stream:
                for text in _lines(stream, fmt.longest_line):
                    yield split, layout, text


def _files(place: str, job: Job) -> tuple[fs.FileSystem, list[str]]:
    """The files of a path, folder or local pattern; hidden ones are Hadoop's and are left out."""
    if is_hadoop(place):
        raise DataError(f"{place} is Hadoop's: read it with --engine spark")
    filesystem, path = open_folder(place, job.hadoop)
    if isinstance(filesystem, fs.LocalFileSystem) and glob.has_magic(path):
        found = sorted(glob.glob(path))
    else:
        info = filesystem.get_file_info(path)
        found = [path] if info.type == fs.FileType.File else []
        if info.type == fs.FileType.Directory:
            found = sorted(i.path for i in filesystem.get_file_info(fs.FileSelector(path)))
    found = [f for f in found if not Path(f).name.startswith(("_", "."))]
    if not found:
        raise DataError(f"no input at {place}")
    return filesystem, found


def _lines(stream: pa.NativeFile, longest: int) -> Iterator[bytes]:
    """Blocks of whole lines. A line beyond `longest` is cut, still too long, to bound memory."""
    tail = b""
    while chunk := stream.read(BLOCK):
        end = chunk.rfind(b"\n") + 1
        if end:
            yield tail + chunk[:end]
            tail = chunk[end:]
        else:
            tail = (tail + chunk)[: longest + 2]
    if tail:
        yield tail + b"\n"
