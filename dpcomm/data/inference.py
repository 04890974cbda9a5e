"""The saved transformation, applied to new records without Spark: the bits that the shards have.

model_input = inference.load("data/census")
rows = model_input.text(b"38,Private,…\\n").features
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpcomm.data import shards
from dpcomm.data.clean import Cleaned, Cleaner, Counts
from dpcomm.data.encode import Transformation
from dpcomm.data.lines import layout_of


@dataclass(frozen=True)
class Applied:
    """`features` [n, features] float32 of the records that are valid; row i came from record
    `source[i]` of the input (a header line is one too). `counts` says what became of the rest."""

    features: np.ndarray
    source: np.ndarray
    counts: Counts


class Inference:
    """Cleans and encodes raw records as a prepared folder's were. They may lack the target and
    the privacy unit; every column that becomes a feature is needed."""

    def __init__(self, transformation: Transformation) -> None:
        self.transformation = transformation
        self.schema = transformation.schema
        self.cleaner = Cleaner(self.schema, labelled=False)

    @property
    def columns(self) -> list[str]:
        return self.transformation.columns

    def text(self, block: bytes) -> Applied:
        """Applies to CSV lines as the schema's format describes them, header included if it says
        so. Raises DataError where the first line cannot be right."""
        block = block if block.endswith(b"\n") else block + b"\n"
        layout = layout_of(block[: block.index(b"\n")], self.schema, labelled=False)
        return self._encode(self.cleaner.text(block, layout))

    def table(self, table: Any) -> Applied:
        """Applies to an Arrow table or batch with the schema's column names."""
        return self._encode(self.cleaner.columns(table))

    def _encode(self, cleaned: Cleaned) -> Applied:
        rows = self.transformation.rows(cleaned.records)
        return Applied(rows[:, :-1], cleaned.lines, cleaned.counts)


def load(folder: str | Path) -> Inference:
    """The transformation that a prepared folder's manifest holds; raises shards.ShardError."""
    return Inference(Transformation.from_dict(shards.manifest(Path(folder))["transformation"]))
