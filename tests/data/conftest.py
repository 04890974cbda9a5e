from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpcomm.data import pums


@pytest.fixture(scope="session", autouse=True)
def _short_lived_java() -> Iterator[None]:
    """Most of these JVMs live for seconds: the second compiler costs them more than it gives."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        yield


@pytest.fixture(scope="session")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is viewfs://test/data to the Spark session: a path that only Hadoop knows."""
    return tmp_path_factory.mktemp("mounted")


@pytest.fixture(scope="session")
def connect() -> str:
    """The address of the Spark Connect server that the Spark session holds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"sc://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="session")
def spark(mounted: Path, connect: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """The one Spark session of a test run."""
    pytest.importorskip("pyspark")
    from dpcomm.data.prepare import session

    settings = {
        "spark.hadoop.fs.viewfs.mounttable.test.link./data": f"file://{mounted}",
        "spark.plugins": "org.apache.spark.sql.connect.SparkConnectPlugin",
        "spark.connect.grpc.binding.port": connect.rpartition(":")[2],
    }
    conf = tmp_path_factory.mktemp("conf")
    lines = [f"{name} {value}\n" for name, value in settings.items()]
    (conf / "spark-defaults.conf").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SPARK_CONF_DIR", str(conf))
        spark = session("local[2]")
    spark.sparkContext.setLogLevel("OFF")
    yield spark
    spark.stop()


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A raw file of 20,000 records with every kind of dirt."""
    path = tmp_path_factory.mktemp("raw") / "pums.csv"
    path.write_bytes(pums.generate(20_000, seed=5))
    return str(path)


@pytest.fixture(scope="session")
def prepared(raw: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the embedded engine makes of `raw`, for tests that only read it."""
    from dpcomm.data.prepare import prepare
    from dpcomm.data.schema import load

    output = tmp_path_factory.mktemp("prepared") / "pums"
    prepare(raw, str(output), load("pums"))
    return output
