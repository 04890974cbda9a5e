"""Spark beyond one process: a standalone master and two workers on loopback addresses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pyspark = pytest.importorskip("pyspark")

from dpcomm.data import java, pums  # noqa: E402
from dpcomm.data.prepare import prepare  # noqa: E402
from dpcomm.data.schema import load  # noqa: E402
from tests.data.test_prepare import same  # noqa: E402

MASTER = "spark://127.0.0.1:17077"
BOUND = ["setpriv", "--pdeathsig", "KILL"]  # they end with the test, however that ends
DRIVER = f"""
import sys
from dpcomm.data.prepare import prepare, session
from dpcomm.data.schema import load
spark = session("{MASTER}")
for line in sys.stdin:
    source, output = line.split()
    prepare(source, output, load("pums"), spark=spark)
"""


class Cluster:
    """A standalone master and its workers, as processes of this test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Small tasks, so that a worker can die between two of them.
        (folder / "spark-defaults.conf").write_text("spark.sql.files.maxPartitionBytes 64k\n")
        self.environment = {
            **os.environ,
            "JAVA_HOME": str(java.find()),
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_WORKER_DIR": str(folder / "work"),
            "SPARK_LOCAL_DIRS": str(folder / "local"),
            "SPARK_CONF_DIR": str(folder),
        }
        self.environment.pop("PYSPARK_GATEWAY_PORT", None)
        self.processes = [self._start("master.Master", "--port", "17077", "--webui-port", "17078")]
        self.workers = [
            self._start(
                *("worker.Worker", "--host", f"127.0.0.{i}", "--cores", "1"),
                *("--memory", "1g", "--webui-port", "0", MASTER),
            )
            for i in (2, 3)
        ]
        self.processes += self.workers

    def _start(self, name: str, *arguments: str) -> subprocess.Popen:
        home = Path(pyspark.__file__).parent
        with open(self.folder / "log", "ab") as log:
            main = f"org.apache.spark.deploy.{name}"
            return subprocess.Popen(
                [*BOUND, home / "bin" / "spark-class", main, *arguments],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until(self, condition: Callable[[], object], otherwise: str) -> None:
        deadline = time.monotonic() + 90
        while not condition():
            log = (self.folder / "log").read_text()
            assert time.monotonic() < deadline, f"{otherwise}: {log[-3000:]}"
            time.sleep(0.1)

    def said(self, text: str) -> int:
        return (self.folder / "log").read_text().count(text)

    def start_driver(self) -> None:
        """One session for all tests. It prepares what its input names: source and output a line."""
        self.driver = subprocess.Popen(
            [*BOUND, sys.executable, "-c", DRIVER],
            env=self.environment,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stderr=open(self.folder / "driver", "wb"),  # noqa: SIM115  its own from here on
            text=True,
        )
        self.processes.append(self.driver)

    def prepare(self, source: str, output: Path) -> None:
        assert self.driver.stdin
        print(source, output, file=self.driver.stdin, flush=True)

    def wait_for(self, output: Path) -> None:
        self.wait_until(
            lambda: (output / "_SUCCESS").exists() or self.driver.poll() is not None, "no output"
        )
        assert self.driver.poll() is None, self.errors()

    def errors(self) -> str:
        return (self.folder / "driver").read_text()

    def kill(self, process: subprocess.Popen) -> None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.wait_until(lambda: cluster.said("elected leader"), "the master did not start")
        cluster.start_driver()  # while the workers start too
        cluster.wait_until(
            lambda: cluster.said("Successfully registered with master") == 2,
            "the workers did not register",
        )
        yield cluster
    finally:
        for process in cluster.processes:
            if process.poll() is None:
                cluster.kill(process)


def test_two_workers_write_the_bytes_of_one_process(cluster, raw, prepared, tmp_path):
    cluster.prepare(raw, tmp_path / "out")
    cluster.wait_for(tmp_path / "out")
    assert same(tmp_path / "out", prepared)


def test_a_killed_worker_loses_nothing(cluster, tmp_path):
    """One worker dies in the middle of the first stage; the other does its finished work again."""
    raw = tmp_path / "pums.csv"
    raw.write_bytes(pums.generate(60_000, seed=3))
    done = set(cluster.folder.rglob("shuffle_*.data"))
    cluster.prepare(raw, tmp_path / "out")
    cluster.wait_until(
        lambda: set(cluster.folder.rglob("shuffle_*.data")) - done, "no task has finished"
    )
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    cluster.kill(cluster.workers[-1])
    cluster.wait_for(tmp_path / "out")
    assert "Lost executor" in cluster.errors()
    prepare(str(raw), str(tmp_path / "expected"), load("pums"))
    assert same(tmp_path / "out", tmp_path / "expected")
