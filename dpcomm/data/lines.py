"""Blocks of CSV lines to columns of text. A line that cannot be a record is dropped and counted.

A newline always ends a record, also between quotes, as in every input that is read in parallel. So
lines are told apart first, by whole-array operations; those that hold a quote are then read one by
one, and all others together.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from dpcomm.data.schema import DataError, Format, Schema

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Layout:
    """How fields lie in a line: their names in order, and the header line where there is one."""

    names: tuple[str, ...]
    header: bytes | None


@dataclass
class Fields:
    """`frame[i]`, the wanted columns as text, came from line `lines[i]` of the block."""

    frame: pl.DataFrame
    lines: np.ndarray
    read: int
    dropped: Counter[str]


def layout_of(first: bytes, schema: Schema, labelled: bool = True) -> Layout:
    """Checks the first line of a CSV file against the schema; raises DataError.

    Without `labelled`, a header needs only the columns that become features.
    """
    first = first.removeprefix(_BOM).rstrip(b"\r\n")
    fmt, wanted = schema.format, [column.name for column in schema.columns]
    if not first:
        raise DataError("the first line is empty")
    try:
        fields = [field.strip() for field in _fields(first, fmt)]
    except DataError as error:
        raise DataError(f"the first line: {error}") from None
    if len(fields) == 1 and len(wanted) > 1:
        other = next((d for d in ";\t|, " if len(first.split(d.encode())) >= len(wanted)), None)
        fix = f"set format.delimiter = {other!r}" if other else "check format.delimiter"
        raise DataError(f"the first line has no {fmt.delimiter!r} in it; {fix} in the schema")
    if not fmt.header:
        if len(fields) != len(wanted):
            raise DataError(
                f"the first line has {len(fields)} fields, the schema {len(wanted)} columns"
            )
        return Layout(tuple(wanted), None)
    if not labelled:
        wanted = [column.name for column in schema.features]
    if twice := [name for name in wanted if fields.count(name) > 1]:
        raise DataError(f"the header names a column twice: {', '.join(twice)}")
    if lacking := [name for name in wanted if name not in fields]:
        raise DataError(
            f"the header lacks {', '.join(lacking)}; it has {', '.join(fields)}"
            " (no header at all? set format.header = false)"
        )
    return Layout(tuple(fields), first)


def split(block: Any, layout: Layout, wanted: Sequence[str], fmt: Format) -> Fields:
    """Splits a block of whole lines (any buffer of bytes, each line ended by a newline)."""
    data = np.frombuffer(block, np.uint8)
    dropped: Counter[str] = Counter()
    ends = np.flatnonzero(data == ord("\n"))
    starts = np.concatenate(([0], ends[:-1] + 1)) if len(ends) else ends
    lengths = ends - starts
    good = np.ones(len(ends), bool)

    def drop(mask: np.ndarray, reason: str) -> None:
        if times := int(np.count_nonzero(mask & good)):
            dropped[f"line: {reason}"] += times
            np.logical_and(good, ~mask, out=good)

    if layout.header is not None:
        good &= ~_equal(data, starts, lengths, layout.header)
        good &= ~_equal(data, starts, lengths, _BOM + layout.header)
    read = int(np.count_nonzero(good))
    drop(lengths > fmt.longest_line, f"longer than {fmt.longest_line} bytes")
    drop(_undecodable(data, starts, ends), "not UTF-8")
    quoted = np.zeros(len(ends), bool)
    if fmt.quote:
        quoted[np.searchsorted(ends, np.flatnonzero(data == ord(fmt.quote)))] = True
        quoted &= good
    delimiters = np.flatnonzero(data == ord(fmt.delimiter))
    fields = np.diff(np.searchsorted(delimiters, ends), prepend=0) + 1
    drop(~quoted & (fields < len(layout.names)), "too few fields")
    drop(~quoted & (fields > len(layout.names)), "too many fields")

    plain = good & ~quoted
    lines = np.flatnonzero(plain)
    body = data if plain.all() else data[np.repeat(plain, lengths + 1)]
    frame = _read(body.tobytes(), layout, wanted, fmt)
    if quoted.any():
        rows, places = [], []
        for i in np.flatnonzero(quoted):
            try:
                row = _fields(data[starts[i] : ends[i]].tobytes(), fmt)
                if len(row) != len(layout.names):
                    few = len(row) < len(layout.names)
                    raise DataError(f"too {'few' if few else 'many'} fields")
            except DataError as error:
                dropped[f"line: {error}"] += 1
            else:
                rows.append([row[layout.names.index(name)] for name in wanted])
                places.append(i)
        frame = pl.concat([frame, pl.DataFrame(rows, schema=frame.schema, orient="row")])
        lines = np.concatenate((lines, np.array(places, lines.dtype)))
        order = np.argsort(lines)
        frame, lines = frame[order], lines[order]
    return Fields(frame, lines, read, dropped)


def _fields(line: bytes, fmt: Format) -> list[str]:
    """The fields of one line, quotes and all."""
    options: dict[str, Any] = {"quotechar": fmt.quote} if fmt.quote else {"quoting": csv.QUOTE_NONE}
    try:
        text = line.decode().rstrip("\r")
        return next(csv.reader([text], delimiter=fmt.delimiter, strict=True, **options), [])
    except UnicodeDecodeError:
        raise DataError("not UTF-8") from None
    except csv.Error:
        raise DataError("quote not closed") from None


def _read(text: bytes, layout: Layout, wanted: Sequence[str], fmt: Format) -> pl.DataFrame:
    """Reads lines that are known to have the right number of fields, and no quotes."""
    if not text:
        return pl.DataFrame(schema=dict.fromkeys(wanted, pl.String))
    names = [f"column_{i}" for i in range(len(layout.names))]
    frame = pl.read_csv(
        text,
        has_header=False,
        new_columns=names,
        separator=fmt.delimiter,
        quote_char=None,
        infer_schema=False,
    )
    return frame.select(pl.col(names[layout.names.index(name)]).alias(name) for name in wanted)


def _equal(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray, text: bytes) -> np.ndarray:
    """The lines that are `text`, with or without a carriage return."""
    at = np.flatnonzero((lengths == len(text)) | (lengths == len(text) + 1))
    for i, byte in enumerate(text):
        at = at[data[starts[at] + i] == byte]
    at = at[(lengths[at] == len(text)) | (data[starts[at] + len(text)] == ord("\r"))]
    equal = np.zeros(len(starts), bool)
    equal[at] = True
    return equal


def _undecodable(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    bad = np.zeros(len(ends), bool)
    for i in np.unique(np.searchsorted(ends, np.flatnonzero(data >= 0x80))):
        try:
            data[starts[i] : ends[i]].tobytes().decode()
        except UnicodeDecodeError:
            bad[i] = True
    return bad
