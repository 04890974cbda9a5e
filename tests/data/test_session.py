"""A master that cannot be, or does not answer, is named before Spark has tried for minutes."""

from __future__ import annotations

import os
import socket
import stat
import time

import pytest

from dpcomm.data import session
from dpcomm.data.prepare import main, prepare
from dpcomm.data.schema import load

pytest.importorskip("pyspark")


def told(master: str, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    code = main(["in", "out", "--schema", "pums", "--master", master])
    return code, capsys.readouterr().err


@pytest.fixture
def closed() -> str:
    """A place where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("master", ["nonsense", "spark://host", "spark://a,b:7077", "mesos://a:1"])
def test_what_is_no_master_is_a_usage_error(master, capsys):
    code, error = told(master, capsys)
    assert code == 2
    assert f"{master!r} is no master of Spark's: give local[4], spark://host:7077" in error


def test_a_master_is_sparks_alone(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["in", "out", "--schema", "pums", "--engine", "polars", "--master", "local[2]"])
    assert "--master is Spark's; leave it out" in capsys.readouterr().err


def test_a_master_that_nobody_answers_for_is_named_at_once(closed, capsys):
    begun = time.monotonic()
    code, error = told(f"spark://{closed},127.0.0.1:1", capsys)
    assert time.monotonic() - begun < 5
    assert code == 3
    assert f"no Spark master answers at spark://{closed},127.0.0.1:1 ({closed}: " in error
    assert "start-master.sh" in error


def test_a_connect_server_that_is_silent_is_named_in_time(capsys, monkeypatch):
    """It takes the connection, and says nothing."""
    pytest.importorskip("grpc")
    monkeypatch.setattr(session, "_PATIENCE", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"sc://127.0.0.1:{server.getsockname()[1]}"
        begun = time.monotonic()
        code, error = told(place, capsys)
    assert time.monotonic() - begun < 15
    assert code == 3
    assert f"no Spark Connect server answers at {place} in 1 s" in error


def test_workers_that_lack_a_package_are_told_from_a_fault_in_the_data(
    spark, raw, tmp_path, monkeypatch
):
    """As on a cluster whose Python is another than the driver's."""
    lacking = "raise ModuleNotFoundError(\"No module named 'polars'\", name='polars')\n"
    (tmp_path / "polars.py").write_text(lacking)
    python = tmp_path / "python"
    path = f"{tmp_path}:$PYTHONPATH"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{path}" exec {spark.sparkContext.pythonExec} "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(spark.sparkContext, "pythonExec", str(python))
    with pytest.raises(session.SparkError, match=r"workers lack the package polars; install"):
        prepare(raw, str(tmp_path / "out"), load("pums"), spark=spark)
    assert "_SUCCESS" not in os.listdir(tmp_path / "out")
