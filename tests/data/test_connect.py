"""Spark Connect: a session that has DataFrames and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.data.test_prepare import same

pytest.importorskip("grpc")


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dpcomm.data.prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_connect_server_writes_the_same_bytes(spark, connect, raw, prepared, tmp_path):
    done = run(raw, tmp_path / "out", "--schema", "pums", "--master", connect)
    assert done.returncode == 0, done.stderr
    assert "20,000 records read" in done.stdout
    assert same(tmp_path / "out", prepared)


def test_errors_through_connect_are_those_of_a_session(spark, connect, tmp_path):
    done = run(tmp_path / "none", tmp_path / "out", "--schema", "pums", "--master", connect)
    assert done.returncode == 2, done.stderr
    assert f"no input at {tmp_path}/none" in done.stderr
    assert "Traceback" not in done.stderr
