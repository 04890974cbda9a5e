"""Statistics of the data that preparation may use: private ones that are paid for, or exact ones.

The one statistic is the mean, for columns with `impute = "mean"`. Values are put on an integer grid
between their public bounds, so that sums are exact, the same for every engine and order, and of
known sensitivity; neighbours differ by one privacy unit, added or removed.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpcomm.data.schema import Schema, SchemaError

GRID = 1 << 20  # steps on either side of the centre of a column's bounds

Sums = dict[str, tuple[int, int]]  # column: sum of grid steps, number of values


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
        """What the ledger must say before the statistics are released."""
        if self.kind != "public" and not wanted(schema):
            raise SchemaError(f"stats = {self.kind}, but no column has impute = 'mean'")
        if self.kind != "dp":
            return None
        unit = schema.unit or "record"
        queries = 2 * len(wanted(schema))
        # A name of its own: two preparations are two releases, one that is trained on twice is one.
        what = f"preparation {secrets.token_hex(8)}: discrete Laplace, {queries} queries a {unit}"
        return {"kind": "release", "what": what, "epsilon": self.epsilon, "delta": 0.0}

    def means(self, schema: Schema, sums: Sums) -> dict[str, float]:
        """The mean of each column that asks for it, within its bounds."""
        if self.kind == "dp":
            sums = self._private(schema, sums)
        means = {}
        for name, (total, count) in sums.items():
            low, high = schema[name].range or (0.0, 0.0)
            place = min(max(total / max(count, 1) / GRID, -1.0), 1.0)
            means[name] = (low + high) / 2 + place * (high - low) / 2
        return means

    def _private(self, schema: Schema, sums: Sums) -> Sums:
        """Both numbers of each column with an equal share of the budget."""
        assert self.epsilon is not None
        share = self.epsilon / (2 * len(sums))
        bound = schema.records_per_unit
        return {
            name: (_laplace(total, bound * GRID / share), _laplace(count, bound / share))
            for name, (total, count) in sums.items()
        }


def _laplace(value: int, scale: float) -> int:
    """Adds discrete Laplace noise, sampled exactly (OpenDP; Canonne, Kamath and Steinke, 2020)."""
    try:
        import opendp.prelude as dp
    except ImportError:
        raise SchemaError("stats = dp needs OpenDP: pip install 'dpcomm[private]'") from None
    dp.enable_features("contrib")
    space = dp.atom_domain(T=dp.i64), dp.absolute_distance(T=dp.i64)
    return dp.m.make_laplace(*space, scale=scale)(value)


def wanted(schema: Schema) -> list[str]:
    return [column.name for column in schema.features if column.impute == "mean"]


def sums(parts: Iterable[np.ndarray], schema: Schema) -> Sums:
    """Adds up packed records, whose units are within their bound already."""
    found = dict.fromkeys(wanted(schema), (0, 0))
    for records in parts:
        for name, (total, count) in found.items():
            low, high = schema[name].range or (0.0, 0.0)
            values = records[name][records[f"{name}?"] == 0].astype(np.float64)
            centre, half = (low + high) / 2, max((high - low) / 2, np.finfo(float).tiny)
            steps = np.rint((values - centre) / half * GRID).astype(np.int64)
            found[name] = total + int(steps.sum()), count + len(steps)
    return found


def add(parts: Iterable[Sums], schema: Schema) -> Sums:
    total = dict.fromkeys(wanted(schema), (0, 0))
    for part in parts:
        for name, (steps, count) in part.items():
            total[name] = total[name][0] + steps, total[name][1] + count
    return total
