"""A schema that cannot be right is refused by the key that is wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from dpcomm.data.prepare import main
from dpcomm.data.schema import SchemaError, from_dict, load

SOURCE = load("pums").source


def changed(place: str, value: Any) -> dict[str, Any]:
    """The pums schema with another value at a dotted place; None takes the key out."""
    source = copy.deepcopy(SOURCE)
    *path, key = place.split(".")
    table = source
    for step in path:
        table = table.setdefault(step, {})
    if value is None:
        del table[key]
    else:
        table[key] = value
    return source


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("columns", 3, "needs a table"),
        ("target", None, "schema lacks target"),
        ("target", "age", "target 'age' must be a category"),
        ("unit", "age", "unit 'age' must be a column of type text"),
        ("records_per_unit", 0, "records_per_unit is at least 1"),
        ("records_per_unit", 1.5, "records_per_unit is a whole number, not 1.5"),
        ("tagret", "x", "unknown key 'tagret'; known are name, target"),
        ("format", "csv", "format is a table"),
        ("format.delimiter", ";;", "one ASCII character"),
        ("format.delimiter", 9, "format: delimiter is a string, not 9"),
        ("format.header", "yes", "format: header is true or false"),
        ("format.missing", "NA", "format: missing is a list of strings, not 'NA'"),
        ("split.test", 1.2, "split is test = a share"),
        ("split.files", {"train": 1}, "split: files is a table of strings"),
        ("columns.age.type", None, "columns.age lacks type"),
        ("columns.age.type", "int", "type 'int' is none of integer"),
        ("columns.age.range", None, "needs its public bounds"),
        ("columns.age.range", 90, r"columns.age: range is two numbers: \[low, high\], not 90"),
        ("columns.age.range", [18], r"columns.age: range is two numbers: \[low, high\]"),
        ("columns.age.range", [18, float("inf")], "range must be finite"),
        ("columns.age.impute", 200, "impute 200 is not within a range"),
        ("columns.age.impute", True, "impute is a number or a string, not True"),
        ("columns.age.impute", "mode", "impute 'mode' is none of mean, median"),
        ("columns.married.impute", "mean", "impute 'mean' is none of 0, 1, mode"),
        ("columns.age.edges", ["a"], "edges is a list of numbers"),
        ("columns.age.edges", [30, 20], "ascending edges"),
        ("columns.sex.codes", [0, 1], r"columns.sex: codes is a list of strings, not \[0, 1\]"),
        ("columns.sex.codes", ["0", "0"], "without repetition"),
        ("columns.sex.codes", None, "a category needs its public vocabulary"),
        ("columns.sex.encode", ["standardise"], "none of one-hot, binary, embed"),
        ("columns.personid.encode", ["one-hot"], "text cannot be a feature"),
    ],
)
def test_what_is_wrong_is_named(place: str, value: Any, message: str):
    with pytest.raises(SchemaError, match=message):
        from_dict(changed(place, value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name = ", "not TOML"),
        (b'name = "\xff"', "not TOML"),
        (b'name = "x"', r"a table \[columns.NAME\]"),
    ],
)
def test_command_names_the_file_and_ends_with_2(text, message, tmp_path, capsys):
    schema = tmp_path / "schema.toml"
    schema.write_bytes(text)
    with pytest.raises(SchemaError, match=rf"schema.toml: .*{message}"):
        load(schema)
    flags = ["--schema", str(schema), "--engine", "polars"]
    assert main(["in", str(tmp_path / "out"), *flags]) == 2
    assert "schema.toml" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_schema_that_is_not_there_lists_those_that_are():
    with pytest.raises(SchemaError, match="one of census, pums, pums-nine"):
        load("iris")
