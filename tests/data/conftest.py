from __future__ import annotations

from collections.abc import Iterator

import pytest

from dpcomm.data import pums


@pytest.fixture(scope="session")
def spark() -> Iterator:
    """The one Spark session of a test run."""
    pytest.importorskip("pyspark")
    from dpcomm.data.prepare import session

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
