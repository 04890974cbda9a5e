"""Statistics of the data that preparation may use: private ones that are paid for, or exact ones.

A column's `impute` may ask for its mean, median or mode over the training records. Each is worked
out from tallies, whole numbers that add up to the same for every engine and order:

- mean: the sum of the values, in steps of a grid between the public bounds, and their number;
- median: how many values fall into each of `BINS` equal parts of the public bounds;
- mode: how many values have each code of the public vocabulary.

Neighbours differ by one privacy unit, added or removed. Each of its records moves a sum by at most
`GRID`, a number by 1, and one part of a histogram by 1.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from dpcomm.data.schema import Column, Schema, SchemaError

GRID = 1 << 20  # steps on either side of the centre of a column's bounds
BINS = 1 << 10

Tallies = dict[str, list[int]]
Values = dict[str, "float | str"]


@dataclass(frozen=True)
class Statistics:
    """How the statistics are had: "public" (none), "dp" with its whole budget, or "exact"."""

    kind: str = "public"
    epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("public", "dp", "exact"):
            raise SchemaError(f"stats is 'public', 'dp' or 'exact', not {self.kind!r}")
        if (self.kind == "dp") != (self.epsilon is not None):
            raise SchemaError("stats = dp and a budget epsilon go together")
        if self.epsilon is not None and not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            raise SchemaError(f"epsilon is positive and finite, not {self.epsilon}")

    def entry(self, schema: Schema) -> dict[str, Any] | None:
        """What the ledger must say before the statistics are released. Raises SchemaError where
        they are not wanted, or cannot be had."""
        if self.kind != "public" and not wanted(schema):
            raise SchemaError(f"stats = {self.kind}, but no column's impute asks for a statistic")
        if self.kind != "dp":
            return None
        if find_spec("opendp") is None:
            raise SchemaError("stats = dp needs OpenDP: pip install 'dpcomm[private]'")
        unit, queries = schema.unit or "record", _queries(schema)
        # A name of its own: two preparations are two releases, one that is trained on twice is one.
        what = f"preparation {secrets.token_hex(8)}: discrete Laplace, {queries} queries a {unit}"
        return {"kind": "release", "what": what, "epsilon": self.epsilon, "delta": 0.0}

    def values(self, schema: Schema, tallies: Tallies) -> Values:
        """The statistic of each column that asks for one, within its bounds or vocabulary."""
        values: Values = {}
        for column in wanted(schema):
            tally = np.array(tallies[column.name], np.int64)
            if self.kind == "dp":
                tally = self._private(tally, column, schema)
            values[column.name] = _value(tally, column)
        return values

    def _private(self, tally: np.ndarray, column: Column, schema: Schema) -> np.ndarray:
        """Every query has an equal share of the budget: a histogram is one query, for a record is
        in one part of it; a sum and its number are two."""
        assert self.epsilon is not None
        # Rounded up, so that no rounding spends more than is charged.
        scale = schema.records_per_unit * _queries(schema) / self.epsilon * (1 + 2**-50)
        if column.statistic != "mean":
            return _laplace(tally, scale)
        total, number = tally
        return np.concatenate([_laplace([total], GRID * scale), _laplace([number], scale)])


def wanted(schema: Schema) -> list[Column]:
    return [column for column in schema.features if column.statistic]


def none(schema: Schema) -> Tallies:
    """The tallies of no record."""
    return {column.name: _tally(np.zeros(0, np.int64), column) for column in wanted(schema)}


def tallies(parts: Iterable[np.ndarray], schema: Schema) -> Tallies:
    """Tallies packed records, whose units are within their bound already."""
    found = none(schema)
    for records in parts:
        for column in wanted(schema):
            values = records[column.name][records[f"{column.name}?"] == 0]
            _add(found[column.name], _tally(values, column))
    return found


def add(parts: Iterable[Tallies], schema: Schema) -> Tallies:
    total = none(schema)
    for part in parts:
        for name, tally in part.items():
            _add(total[name], tally)
    return total


def _add(total: list[int], tally: list[int]) -> None:
    total[:] = [a + b for a, b in zip(total, tally, strict=True)]


def _queries(schema: Schema) -> int:
    return sum(2 if column.statistic == "mean" else 1 for column in wanted(schema))


def _tally(values: np.ndarray, column: Column) -> list[int]:
    if column.statistic == "mode":
        return np.bincount(values, minlength=len(column.codes)).tolist()
    values = values.astype(np.float64)
    if column.statistic == "mean":
        low, high = column.range or (0.0, 0.0)
        centre, half = (low + high) / 2, max((high - low) / 2, np.finfo(float).tiny)
        steps = np.rint((values - centre) / half * GRID).astype(np.int64)
        return [int(steps.sum()), len(steps)]
    bins, low, width = _parts(column)
    places = np.clip(np.floor((values - low) / width), 0, bins - 1).astype(np.int64)
    return np.bincount(places, minlength=bins).tolist()


def _value(tally: np.ndarray, column: Column) -> float | str:
    if column.statistic == "mode":
        return column.codes[int(np.argmax(tally))]
    if column.statistic == "mean":
        low, high = column.range or (0.0, 0.0)
        total, number = tally.tolist()
        place = min(max(total / max(number, 1) / GRID, -1.0), 1.0)
        return (low + high) / 2 + place * (high - low) / 2
    _, low, width = _parts(column)
    below = np.cumsum(tally)
    place = int(np.argmax(2 * below >= below[-1]))
    return low + (place + 0.5) * width - (0.5 if column.type == "integer" else 0.0)


def _parts(column: Column) -> tuple[int, float, float]:
    """The parts of a histogram for the median: how many, where they begin, how wide each is. An
    integer stands for itself where they suffice."""
    low, high = column.bounds
    span = high - low + (1 if column.type == "integer" else 0)
    bins = min(BINS, int(span)) if column.type == "integer" else BINS
    return bins, low, span / bins or 1.0


def _laplace(values: Any, scale: float) -> np.ndarray:
    """Adds discrete Laplace noise, sampled exactly (OpenDP; Canonne, Kamath and Steinke, 2020)."""
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=dp.i64)), dp.l1_distance(T=dp.i64)
    return np.array(dp.m.make_laplace(*space, scale=scale)([int(v) for v in values]), np.int64)
