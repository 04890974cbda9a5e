"""Raw lines to typed records: one columnar program in Polars, for every engine.

Spark's Python workers, the embedded engine and inference all call `Cleaner`, which is why their
results agree to the bit. A record comes out as one element of a packed NumPy array (`record_dtype`)
with a 63-bit key that decides its order, shard and split.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from dpcomm.data.schema import Column, DataError, Schema

LONGEST_UNIT = 64
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SPLIT_SALT = np.uint64(0x243F6A8885A308D3)


@dataclass
class Counts:
    """What became of the records. `dropped`, `repaired` and `imputed` count each reason, so a
    record with two faults is counted under both."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    imputed: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        self.read += other.read
        self.kept += other.kept
        for name in ("dropped", "repaired", "imputed"):
            getattr(self, name).update(getattr(other, name))

    def to_dict(self) -> dict[str, Any]:
        reasons = {
            name: dict(sorted(getattr(self, name).items()))
            for name in ("dropped", "repaired", "imputed")
        }
        return {"read": self.read, "kept": self.kept, **reasons}

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> Counts:
        reasons = {n: Counter(table[n]) for n in ("dropped", "repaired", "imputed")}
        return cls(table["read"], table["kept"], **reasons)


@dataclass
class Cleaned:
    """`records[i]` came from line `lines[i]` of the block and has key `keys[i]`."""

    records: np.ndarray
    keys: np.ndarray
    lines: np.ndarray
    counts: Counts


def record_dtype(schema: Schema) -> np.dtype:
    """The packed record: the target's code, then each feature's value and, where the schema
    imputes, whether it was missing. Padded to 8 bytes, so that a record is a row of words."""
    fields = [("target", "u1"), *((f"{c.name}?", "u1") for c in schema.features if _imputes(c))]
    fields += [(c.name, _storage(c)) for c in schema.features]
    size = np.dtype(fields).itemsize
    return np.dtype([*fields, ("", f"V{-size % 8}")]) if size % 8 else np.dtype(fields)


def _imputes(column: Column) -> bool:
    return column.impute is not None


def _storage(column: Column) -> str:
    if column.type == "category":
        return "u1" if len(column.codes) <= 256 else "<u4"
    low, high = column.range or (0, 0)
    return "<i4" if column.type == "integer" and max(-low, high) < 2**31 else "<f8"


def _mix(h: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of 64-bit words."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def _hash(words: np.ndarray, lengths: np.ndarray | int) -> np.ndarray:
    """Hashes rows of 64-bit words, of which `lengths` bytes count; int64 in [0, 2^63)."""
    lengths = np.broadcast_to(np.asarray(lengths, "<u8"), len(words))
    h = lengths * _GOLDEN
    for i in range(words.shape[1]):
        h = np.where(lengths > 8 * i, _mix((h ^ words[:, i]) + _GOLDEN), h)
    return (h >> np.uint64(1)).astype(np.int64)


def is_test(keys: np.ndarray, share: float) -> np.ndarray:
    """The records whose unit falls into the test split: independent of order and shard."""
    return _mix(keys.astype("<u8") ^ _SPLIT_SALT) < np.uint64(int(share * 2**64))


def shard_of(keys: np.ndarray, shards: int) -> np.ndarray:
    """The shard of each record, so that all records of a unit meet in one."""
    return (_mix(keys.astype("<u8")) % np.uint64(shards)).astype(np.int32)


def fields_of(line: bytes, schema: Schema) -> list[str]:
    """Splits one line as the schema's format says; raises DataError."""
    fmt = schema.format
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
        quoting = {"quotechar": fmt.quote} if fmt.quote else {"quoting": csv.QUOTE_NONE}
        rows = list(csv.reader([text], delimiter=fmt.delimiter, strict=True, **quoting))
    except UnicodeDecodeError:
        raise DataError("line: not UTF-8") from None
    except csv.Error:
        raise DataError("line: quote not closed") from None
    return rows[0] if rows else []


def check_first_line(line: bytes, schema: Schema) -> list[str]:
    """Checks the first line of a CSV file; returns the names of its fields in order."""
    fields = [name.strip() for name in fields_of(line, schema)]
    wanted = [column.name for column in schema.columns]
    delimiter = schema.format.delimiter
    count = len(wanted)
    if len(fields) == 1 and count > 1:
        other = next((d for d in ";\t|, " if len(line.split(d.encode())) >= count), None)
        fix = f"set format.delimiter = {other!r}" if other else "check format.delimiter"
        raise DataError(f"the first line has no {delimiter!r} in it; {fix} in the schema")
    if not schema.format.header:
        if len(fields) != count:
            raise DataError(f"the first line has {len(fields)} fields, the schema {count} columns")
        return wanted
    twice = [name for name, times in Counter(fields).items() if times > 1]
    lacking = [name for name in wanted if name not in fields]
    if twice:
        raise DataError(f"the header names a column twice: {', '.join(twice)}")
    if lacking:
        raise DataError(
            f"the header lacks {', '.join(lacking)}; it has {', '.join(fields)}"
            " (no header at all? set format.header = false)"
        )
    return fields


class Cleaner:
    """Cleans blocks of a data set. `header` is the order of the fields in a CSV line."""

    def __init__(self, schema: Schema, header: list[str] | None = None) -> None:
        self.schema = schema
        self.header = header or [column.name for column in schema.columns]
        self.dtype = record_dtype(schema)
        self.positions = [self.header.index(column.name) for column in schema.columns]

    def text(self, block: Any) -> Cleaned:
        """Cleans a block of whole lines: any buffer of bytes, each line ended by a newline.

        A newline always ends a record, also between quotes, as in any input that is read in
        parallel; such a line is dropped for its unclosed quote.
        """
        data = np.frombuffer(block, np.uint8)
        fmt, counts = self.schema.format, Counts()
        ends = np.flatnonzero(data == ord("\n"))
        starts = np.concatenate(([0], ends[:-1] + 1)) if len(ends) else ends
        lengths = ends - starts
        delimiters = np.flatnonzero(data == ord(fmt.delimiter))
        separators = np.diff(np.searchsorted(delimiters, ends), prepend=0)

        good = np.ones(len(ends), bool)

        def drop(mask: np.ndarray, reason: str) -> None:
            if dropped := int(np.count_nonzero(mask & good)):
                counts.dropped[reason] += dropped
            np.logical_and(good, ~mask, out=good)

        headers = self._headers(data, starts, lengths) if fmt.header else ~good
        np.logical_and(good, ~headers, out=good)
        counts.read = int(np.count_nonzero(good))
        drop(lengths > fmt.longest_line, f"line: longer than {fmt.longest_line} bytes")
        drop(self._undecodable(data, starts, ends), "line: not UTF-8")
        quotes = np.flatnonzero(data == ord(fmt.quote)) if fmt.quote else ends[:0]
        quoted = np.zeros(len(ends), bool)
        quoted[np.searchsorted(ends, quotes)] = True
        quoted &= good
        drop(~quoted & (separators < len(self.header) - 1), "line: too few fields")
        drop(~quoted & (separators > len(self.header) - 1), "line: too many fields")

        plain = good & ~quoted
        lines = np.flatnonzero(plain)
        body = data if plain.all() else data[np.repeat(plain, lengths + 1)]
        frame = self._parse(body) if len(lines) else self._frame([])
        if quoted.any():
            rows, places = [], []
            for i in np.flatnonzero(quoted):
                try:
                    fields = fields_of(data[starts[i] : ends[i]].tobytes(), self.schema)
                    if len(fields) != len(self.header):
                        few = len(fields) < len(self.header)
                        raise DataError(f"line: too {'few' if few else 'many'} fields")
                except DataError as error:
                    counts.dropped[str(error)] += 1
                else:
                    rows.append([fields[p] for p in self.positions])
                    places.append(i)
            frame = pl.concat([frame, self._frame(rows)])
            lines = np.concatenate((lines, np.array(places, lines.dtype)))
            order = np.argsort(lines)
            frame, lines = frame[order], lines[order]
        spaces = bool((data == ord(" ")).any() or (data == ord("\t")).any())
        return self._typed(frame, lines, counts, strip=spaces or bool((data == ord("\r")).any()))

    def columns(self, table: Any) -> Cleaned:
        """Cleans a block of columns: an Arrow table or batch with the schema's column names."""
        frame = pl.DataFrame(pl.from_arrow(table))
        counts = Counts(read=frame.height)
        frame = frame.select(column.name for column in self.schema.columns)
        return self._typed(frame, np.arange(frame.height), counts, strip=True)

    def _headers(self, data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        header = np.frombuffer(self.schema.format.delimiter.join(self.header).encode(), np.uint8)
        marked = np.zeros(len(starts), bool)
        mark = b"\xef\xbb\xbf" if data[:3].tobytes() == b"\xef\xbb\xbf" else b""
        at = np.flatnonzero((lengths >= len(header)) & (lengths <= len(header) + 1 + len(mark)))
        skip = np.where(at == 0, len(mark), 0)
        for i, byte in enumerate(header):
            same = data[starts[at] + skip + i] == byte
            at, skip = at[same], skip[same]
        marked[at] = True
        return marked

    def _undecodable(self, data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        bad = np.zeros(len(ends), bool)
        high = np.flatnonzero(data >= 0x80)
        for i in np.unique(np.searchsorted(ends, high)):
            try:
                data[starts[i] : ends[i]].tobytes().decode()
            except UnicodeDecodeError:
                bad[i] = True
        return bad

    def _parse(self, body: np.ndarray) -> pl.DataFrame:
        """Reads lines that are known to have the right number of fields, and no quotes."""
        names = [f"column_{i}" for i in range(len(self.header))]
        frame = pl.read_csv(
            body.tobytes(),
            has_header=False,
            new_columns=names,
            separator=self.schema.format.delimiter,
            quote_char=None,
            infer_schema=False,
        )
        chosen = {
            names[p]: c.name for p, c in zip(self.positions, self.schema.columns, strict=True)
        }
        return frame.select(pl.col(name).alias(column) for name, column in chosen.items())

    def _frame(self, rows: list[list[str]]) -> pl.DataFrame:
        types = {column.name: pl.String for column in self.schema.columns}
        return pl.DataFrame(rows, schema=types, orient="row")

    def _typed(
        self, frame: pl.DataFrame, lines: np.ndarray, counts: Counts, strip: bool
    ) -> Cleaned:
        """Types and checks every value, counts what is wrong, drops or marks it, and packs."""
        schema = self.schema
        plans = [
            _Plan(column, frame.schema[column.name], schema, strip) for column in schema.columns
        ]
        typed = frame.lazy().select(e for plan in plans for e in plan.values()).collect()
        checks = typed.lazy().select(e for plan in plans for e in plan.checks()).collect()
        fatal = [name for name in checks.columns if name.startswith("dropped/")]
        keep = ~checks.select(pl.any_horizontal(fatal)).to_series() if fatal else None
        if keep is not None and not keep.all():
            for name in fatal:
                if times := int(checks[name].sum()):
                    counts.dropped[name.removeprefix("dropped/")] += times
            typed, checks = typed.filter(keep), checks.filter(keep)
            lines = lines[keep.to_numpy()]
        for name in checks.columns:
            kind, reason = name.split("/", 1)
            if kind in ("repaired", "imputed") and (times := int(checks[name].sum())):
                getattr(counts, kind)[reason] += times
        counts.kept = len(lines)

        records = np.zeros(len(lines), self.dtype)
        records["target"] = typed[schema.target].to_numpy()
        for column in schema.features:
            values = typed[column.name].fill_null(0).to_numpy()
            if _imputes(column):
                flag = checks[f"imputed/{column.name}: missing"].to_numpy()
                records[f"{column.name}?"] = flag
                values = np.where(flag, 0, values)
            records[column.name] = values
        return Cleaned(records, self._keys(records, typed), lines, counts)

    def _keys(self, records: np.ndarray, typed: pl.DataFrame) -> np.ndarray:
        """A hash of the privacy unit; without one, of the record, for equal records are
        interchangeable."""
        if self.schema.unit is None:
            words = records.view("<u8").reshape(len(records), -1)
            return _hash(words, records.dtype.itemsize)
        units = typed[self.schema.unit]
        lengths = units.str.len_bytes().to_numpy()
        width = max(8, -(-int(lengths.max() or 0) // 8) * 8) if len(lengths) else 8
        padded = np.zeros((len(units), width), np.uint8)
        text = np.frombuffer("".join(units.to_list()).encode(), np.uint8)
        padded[np.arange(width) < lengths[:, None]] = text
        return _hash(padded.view("<u8"), lengths)


class _Plan:
    """The expressions of one column. Bounds and codes are the schema's: public."""

    def __init__(self, column: Column, dtype: pl.DataType, schema: Schema, strip: bool) -> None:
        self.column, self.name = column, column.name
        self.is_unit = column.name == schema.unit
        self.needed = self.is_unit or column.name == schema.target or bool(column.encode)
        self.text = pl.col(self.name) if dtype == pl.String else pl.col(self.name).cast(pl.String)
        if strip:
            self.text = self.text.str.strip_chars()
        self.numeric = column.type in ("integer", "number")
        self.raw = pl.col(self.name) if dtype.is_numeric() and self.numeric else self.text
        self.absent = self.text.is_null() | self.text.is_in(["", *schema.format.missing])

    def values(self) -> list[pl.Expr]:
        """The typed value (null where there is none) and whether nothing was written."""
        if self.numeric:
            value = self.raw.cast(pl.Float64, strict=False)
        elif self.column.type == "category":
            value = self.text.cast(pl.Enum(self.column.codes), strict=False).to_physical()
        else:
            value = self.text
        return [value.alias(self.name), self.absent.alias(f"{self.name}/absent")]

    def checks(self) -> list[pl.Expr]:
        """One boolean for each reason to drop, repair or impute this column's value."""
        column, value, absent = self.column, pl.col(self.name), pl.col(f"{self.name}/absent")
        if self.numeric:
            low, high = column.range or (0.0, 0.0)
            number = value.is_not_null() & value.is_finite().fill_null(False)
            faults = {
                "not a number": ~absent & ~number,
                "out of range": ~absent & number & ~value.is_between(low, high).fill_null(False),
            }
            if column.type == "integer":
                whole = (value == value.floor()).fill_null(False)
                inside = value.is_between(low, high).fill_null(False)
                faults["not a whole number"] = ~absent & number & inside & ~whole
        elif column.type == "category":
            faults = {"unknown code": ~absent & value.is_null()}
        elif self.is_unit:
            long = (value.str.len_bytes() > LONGEST_UNIT).fill_null(False)
            faults = {f"longer than {LONGEST_UNIT} bytes": long}
        else:
            faults = {}
        repaired = column.invalid == "missing"
        if repaired:
            absent = pl.any_horizontal(absent, *faults.values())
        checks = {
            f"{'repaired' if repaired else 'dropped'}/{self.name}: {reason}": fault
            for reason, fault in faults.items()
        }
        if column.impute is not None:
            checks[f"imputed/{self.name}: missing"] = absent
        elif self.needed:
            checks[f"dropped/{self.name}: missing"] = absent
        return [expression.alias(name) for name, expression in checks.items()]
