"""The schema file: what the columns of a data set mean, and how each becomes features.

Everything a feature may depend on stands in this file (public bounds, public vocabularies, fixed
values for what is missing), so preparing data spends no privacy unless the schema asks for
statistics. `schemas/README.md` describes the language; unknown keys are errors.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TYPES = ("integer", "number", "category", "text")
NUMERIC_ENCODINGS = ("standardise", "bucket")
CATEGORY_ENCODINGS = ("one-hot", "binary", "embed")
STATISTICS = ("mean", "median", "mode")  # the last of a category, the others of numbers


class SchemaError(ValueError):
    """The schema file cannot be right; the message names the key and the fix."""


class DataError(ValueError):
    """The input cannot be right; the message names what was found and the fix."""


@dataclass(frozen=True)
class Column:
    """One column of the input.

    `range` bounds numbers (inclusive), `codes` lists the values of a category: both are public.
    `impute` replaces what is missing, by itself or by the statistic that it names, and adds a flag
    feature; without it a record that lacks the value is dropped. `invalid` says what a value
    outside the range or codes is: reason to "drop" the record, or as good as "missing".
    """

    name: str
    type: str
    range: tuple[float, float] | None = None
    codes: tuple[str, ...] = ()
    impute: float | str | None = None
    invalid: str = "drop"
    encode: tuple[str, ...] = ()
    scale: tuple[float, float] | None = None
    edges: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        def refuse(fault: str) -> None:
            raise SchemaError(f"columns.{self.name}: {fault}")

        numeric = self.type in ("integer", "number")
        allowed = NUMERIC_ENCODINGS if numeric else CATEGORY_ENCODINGS
        if self.type not in TYPES:
            refuse(f"type {self.type!r} is none of {', '.join(TYPES)}")
        if numeric and (self.range is None or not self.range[0] <= self.range[1]):
            refuse("a number needs its public bounds: range = [low, high]")
        if numeric and not all(map(math.isfinite, self.range or ())):
            refuse("range must be finite")
        if self.type == "category" and (not self.codes or len(set(self.codes)) < len(self.codes)):
            refuse("a category needs its public vocabulary without repetition: codes = [...]")
        if self.type == "text" and (self.encode or self.impute is not None):
            refuse("text cannot be a feature; make it a category with codes")
        if self.invalid not in ("drop", "missing"):
            refuse(f"invalid is 'drop' or 'missing', not {self.invalid!r}")
        for encoding in self.encode:
            if encoding not in allowed:
                refuse(f"encode {encoding!r} is none of {', '.join(allowed)} (type {self.type})")
        if "binary" in self.encode and len(self.codes) != 2:
            refuse("encode 'binary' needs exactly two codes")
        if ("bucket" in self.encode) != bool(self.edges) or list(self.edges) != sorted(self.edges):
            refuse("encode 'bucket' and ascending edges = [...] go together")
        if "standardise" in self.encode and not self.bounds[0] < self.bounds[1]:
            refuse("standardise needs low < high in scale, or else in range")
        statistics = STATISTICS[:2] if numeric else STATISTICS[2:]
        if isinstance(self.impute, str) and self.impute not in self.codes + statistics:
            refuse(f"impute {self.impute!r} is none of {', '.join(self.codes + statistics)}")
        if isinstance(self.impute, float) and not (
            self.range and self.range[0] <= self.impute <= self.range[1]
        ):
            refuse(f"impute {self.impute:g} is not within a range")

    @property
    def bounds(self) -> tuple[float, float]:
        """What `standardise` maps to [-1, 1]; values beyond are clamped."""
        return self.scale or self.range or (0.0, 0.0)

    @property
    def statistic(self) -> str | None:
        """The statistic that `impute` asks for; a code of that name comes first."""
        impute = str(self.impute)
        return impute if impute in STATISTICS and impute not in self.codes else None


@dataclass(frozen=True)
class Format:
    """How the input is written. Parquet needs none of it but `missing`."""

    kind: str = "csv"
    delimiter: str = ","
    quote: str = '"'
    header: bool = True
    missing: tuple[str, ...] = ()
    longest_line: int = 1 << 20

    def __post_init__(self) -> None:
        if self.kind not in ("csv", "parquet"):
            raise SchemaError(f"format.kind is 'csv' or 'parquet', not {self.kind!r}")
        if len(self.delimiter.encode()) != 1 or len(self.quote.encode()) > 1:
            raise SchemaError("format.delimiter is one ASCII character, format.quote one or none")


@dataclass(frozen=True)
class Split:
    """Train and test: by a hash of the privacy unit (`test` is a share), or as named files."""

    test: float = 0.0
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.test < 1 or (self.files and self.test):
            raise SchemaError("split is test = a share in [0, 1), or files = {train=, test=}")
        if self.files and set(self.files) != {"train", "test"}:
            raise SchemaError("split.files names the patterns of both train and test")


@dataclass(frozen=True)
class Schema:
    """A data set. `unit` is the column that says whom a record speaks of (the privacy unit)."""

    name: str
    target: str
    columns: tuple[Column, ...]
    unit: str | None = None
    records_per_unit: int = 1
    format: Format = Format()
    split: Split = Split()
    source: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        named = {column.name: column for column in self.columns}
        target = named.get(self.target)
        if target is None or target.type != "category" or target.encode or target.impute:
            raise SchemaError(
                f"target {self.target!r} must be a category column without encode or impute"
            )
        if self.unit is not None and (
            self.unit not in named or named[self.unit].encode or named[self.unit].type != "text"
        ):
            raise SchemaError(f"unit {self.unit!r} must be a column of type text without encode")
        if self.records_per_unit < 1 or (self.unit is None and self.records_per_unit != 1):
            raise SchemaError("records_per_unit is at least 1, and needs a unit to be more")
        if not self.features:
            raise SchemaError("no column has an encode: there would be no feature")

    @property
    def features(self) -> tuple[Column, ...]:
        """The columns that become features, in order."""
        return tuple(column for column in self.columns if column.encode)

    def __getitem__(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_list(of: Callable[[Any], bool], lengths: range = range(1 << 30)) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) in lengths and all(map(of, value))


# What TOML must hold for a field of each type, by its annotation.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("a string", _is_text),
    "str | None": ("a string", _is_text),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "int": ("a whole number", lambda value: _is_number(value) and isinstance(value, int)),
    "float": ("a number", _is_number),
    "float | str | None": ("a number or a string", lambda v: _is_number(v) or _is_text(v)),
    "tuple[float, float] | None": ("two numbers: [low, high]", _is_list(_is_number, range(2, 3))),
    "tuple[float, ...]": ("a list of numbers", _is_list(_is_number)),
    "tuple[str, ...]": ("a list of strings", _is_list(_is_text)),
    "dict[str, str]": (
        "a table of strings",
        lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
    ),
}


def _build(cls: type, table: Any, where: str) -> Any:
    if not isinstance(table, dict):
        raise SchemaError(f"{where} is a table, not {table!r}")
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in table.items():
        if key not in known:
            raise SchemaError(f"{where}: unknown key {key!r}; known are {', '.join(known)}")
        words, fits = _KINDS.get(str(known[key].type), ("", None))
        if fits and not fits(value):
            raise SchemaError(f"{where}: {key} is {words}, not {value!r}")
    required = [f.name for f in known.values() if _needs(f)]
    if lacking := [name for name in required if name not in table]:
        raise SchemaError(f"{where} lacks {', '.join(lacking)}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in table.items()})


def _needs(of: dataclasses.Field) -> bool:
    return of.default is dataclasses.MISSING and of.default_factory is dataclasses.MISSING


def _column(name: str, table: dict[str, Any]) -> Column:
    table = {"name": name, **table}
    if isinstance(table.get("encode"), str):
        table["encode"] = [table["encode"]]
    if _is_number(table.get("impute")):
        table["impute"] = float(table["impute"])
    return _build(Column, table, f"columns.{name}")


def from_dict(source: dict[str, Any]) -> Schema:
    """Builds a schema from what a TOML file (or a manifest) holds; raises SchemaError."""
    table = dict(source)
    columns = table.pop("columns", None)
    if not isinstance(columns, dict) or not all(isinstance(c, dict) for c in columns.values()):
        raise SchemaError("a schema needs a table [columns.NAME] for each column")
    table["columns"] = [_column(name, column) for name, column in columns.items()]
    table["format"] = _build(Format, table.get("format", {}), "format")
    table["split"] = _build(Split, table.get("split", {}), "split")
    table["source"] = source
    return _build(Schema, table, "schema")


def load(path: str | Path) -> Schema:
    """Reads a schema file; a bare name like "census" is one of the package's own."""
    file = Path(path)
    if file.suffix != ".toml" and not file.exists():
        file = Path(__file__).parent / "schemas" / f"{path}.toml"
    try:
        return from_dict(tomllib.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        own = sorted(p.stem for p in (Path(__file__).parent / "schemas").glob("*.toml"))
        raise SchemaError(
            f"no schema at {path}; give a .toml file or one of {', '.join(own)}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SchemaError(f"{file}: not TOML: {error}") from None
    except SchemaError as error:
        raise SchemaError(f"{file}: {error}") from None
