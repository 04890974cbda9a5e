"""Typed records to rows of float32: features, then the label.

A `Transformation` holds all that encoding depends on: the schema, and the values of statistics
where the schema asks for them. It is saved in the manifest, so that new records are encoded as the
shards were. Arithmetic is in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpcomm.data.schema import Column, Schema, SchemaError, from_dict


@dataclass(frozen=True)
class Transformation:
    """Encodes packed records (`clean.record_dtype`) of a schema.

    `statistics` maps a column whose `impute` names a statistic to its value.
    """

    schema: Schema
    statistics: Mapping[str, float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for column in self.schema.features:
            if column.statistic and column.name not in self.statistics:
                raise SchemaError(
                    f"columns.{column.name}: impute = {column.impute!r} needs stats = dp or exact;"
                    " with public stats give a fixed value"
                )

    @property
    def columns(self) -> list[str]:
        """The names of the features, in the order of the row."""
        return [name for column in self.schema.features for name in _names(column)]

    @property
    def embeddings(self) -> dict[str, int]:
        """The features that are indices into an embedding, and how many rows it needs."""
        return {
            f"{column.name} code": len(column.codes)
            for column in self.schema.features
            if "embed" in column.encode
        }

    def rows(self, records: np.ndarray) -> np.ndarray:
        """Encodes [n] packed records into [n, features + 1] float32; the label comes last."""
        rows = np.zeros((len(records), len(self.columns) + 1), "<f4")
        at = 0
        for column in self.schema.features:
            at = self._encode(column, records, rows, at)
        rows[:, at] = records["target"]
        return rows

    def _encode(self, column: Column, records: np.ndarray, rows: np.ndarray, at: int) -> int:
        values = records[column.name]
        missing = records[f"{column.name}?"] == 1 if column.impute is not None else None
        if missing is not None:
            values = np.where(missing, self._imputed(column), values)
        for encoding in column.encode:
            if encoding == "standardise":
                low, high = column.bounds
                centre, half = (low + high) / 2, (high - low) / 2
                rows[:, at] = (np.clip(values, low, high) - centre) / half
                at += 1
            elif encoding == "bucket":
                for edge in column.edges:
                    rows[:, at] = values >= edge
                    at += 1
            elif encoding == "one-hot":
                rows[np.arange(len(rows)), at + values.astype(np.intp)] = 1
                at += len(column.codes)
            else:  # binary, or an embedding's index: the code's place in the vocabulary
                rows[:, at] = values
                at += 1
        if missing is not None:
            rows[:, at] = missing
            at += 1
        return at

    def _imputed(self, column: Column) -> float:
        value = self.statistics[column.name] if column.statistic else column.impute
        if column.type == "category":
            return column.codes.index(str(value))
        return float(value or 0)

    def to_dict(self) -> dict[str, Any]:
        return {"schema": self.schema.source, "statistics": dict(self.statistics)}

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> Transformation:
        return cls(from_dict(table["schema"]), table["statistics"])


def _names(column: Column) -> list[str]:
    names = []
    for encoding in column.encode:
        if encoding == "standardise":
            names.append(column.name)
        elif encoding == "bucket":
            names += [f"{column.name}>={edge:g}" for edge in column.edges]
        elif encoding == "one-hot":
            names += [f"{column.name}={code}" for code in column.codes]
        elif encoding == "binary":
            names.append(f"{column.name}={column.codes[1]}")
        else:
            names.append(f"{column.name} code")
    return names + ([f"{column.name} missing"] if column.impute is not None else [])
