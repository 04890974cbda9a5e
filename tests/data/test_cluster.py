"""Spark beyond one process: a standalone master and two workers on loopback addresses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pyspark = pytest.importorskip("pyspark")

from dpcomm.data import java  # noqa: E402
from dpcomm.data.prepare import prepare  # noqa: E402
from dpcomm.data.schema import load  # noqa: E402
from tests.data.test_prepare import same  # noqa: E402

MASTER = "spark://127.0.0.1:17077"


class Cluster:
    """A standalone master and its workers, as processes of this test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "JAVA_HOME": str(java.find()),
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_WORKER_DIR": str(folder / "work"),
        }
        self.environment.pop("PYSPARK_GATEWAY_PORT", None)
        self.processes = [self._start("master.Master", "--port", "17077", "--webui-port", "17078")]
        for i in (2, 3):
            self.processes.append(
                self._start(
                    *("worker.Worker", "--host", f"127.0.0.{i}", "--cores", "1"),
                    *("--memory", "1g", "--webui-port", "0", MASTER),
                )
            )

    def _start(self, name: str, *arguments: str) -> subprocess.Popen:
        home = Path(pyspark.__file__).parent
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(
                [home / "bin" / "spark-class", f"org.apache.spark.deploy.{name}", *arguments],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_for(self, text: str, times: int, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while (self.folder / "log").read_text().count(text) < times:
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.2)

    def submit(self, source: str, output: Path, **settings: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "dpcomm.data.prepare", source, str(output)]
        command += ["--schema", "pums", "--master", MASTER]
        return subprocess.Popen(
            command,
            env={**self.environment, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill(self, process: subprocess.Popen) -> None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def prepared(raw: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("prepared") / "out"
    prepare(raw, str(output), load("pums"))
    return output


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        cluster.wait_for("Successfully registered with master", 2)
        yield cluster
    finally:
        for process in cluster.processes:
            if process.poll() is None:
                cluster.kill(process)


def test_two_workers_write_the_bytes_of_one_process(cluster, raw, prepared, tmp_path):
    job = cluster.submit(raw, tmp_path / "out")
    output, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    assert "20,000 records read" in output
    assert same(tmp_path / "out", prepared)


def test_a_killed_worker_loses_nothing(cluster, raw, prepared, tmp_path):
    """One worker dies while its tasks run: the other does their work again."""
    slow = tmp_path / "slow"
    cluster.submit(raw, tmp_path / "out", DPCOMM_TEST_PAUSE=str(slow))
    cluster.wait_for("Launching executor", 2)
    ...
