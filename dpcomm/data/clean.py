"""Raw lines to typed records: one columnar program in Polars, for every engine.

Spark's Python workers, the embedded engine and inference all call `Cleaner`, which is why their
results agree to the bit. A record comes out as one element of a packed NumPy array (`record_dtype`)
and with its key.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from dpcomm.data import keys
from dpcomm.data.lines import Layout, split
from dpcomm.data.schema import Column, Schema

LONGEST_UNIT = 64


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


class Cleaner:
    """Cleans blocks of a data set.

    Records that are not `labelled` need no target and no privacy unit: they are for inference, and
    only the columns that become features are looked at.
    """

    def __init__(self, schema: Schema, labelled: bool = True) -> None:
        self.schema = schema
        self.labelled = labelled
        self.dtype = record_dtype(schema)
        self.wanted = schema.columns if labelled else schema.features

    def text(self, block: Any, layout: Layout) -> Cleaned:
        """Cleans a block of CSV lines: any buffer of bytes, each line ended by a newline."""
        fields = split(block, layout, [c.name for c in self.wanted], self.schema.format)
        counts = Counts(read=fields.read, dropped=fields.dropped)
        bytes_ = memoryview(block).tobytes()
        strip = any(space in bytes_ for space in (b" ", b"\t", b"\r"))
        return self._typed(fields.frame, fields.lines, counts, strip)

    def columns(self, table: Any) -> Cleaned:
        """Cleans a block of columns: an Arrow table or batch with the schema's column names."""
        frame = pl.DataFrame(pl.from_arrow(table))
        counts = Counts(read=frame.height)
        frame = frame.select(column.name for column in self.wanted)
        return self._typed(frame, np.arange(frame.height), counts, strip=True)

    def _typed(
        self, frame: pl.DataFrame, lines: np.ndarray, counts: Counts, strip: bool
    ) -> Cleaned:
        """Types and checks every value, counts what is wrong, drops or marks it, and packs."""
        schema = self.schema
        plans = [_Plan(c, frame.schema[c.name], schema, strip) for c in self.wanted]
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
        if self.labelled:
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
        if self.schema.unit is None or not self.labelled:
            words = records.view("<u8").reshape(len(records), -1)
            return keys.of_words(words, records.dtype.itemsize)
        units = typed[self.schema.unit]
        text = "".join(units.to_list()).encode()
        return keys.of_texts(text, units.str.len_bytes().to_numpy())


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
