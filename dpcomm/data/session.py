"""A Spark session wherever the master is, and Spark's errors as one line each."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dpcomm._core import UsageError
from dpcomm.data import java, store

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_MASTER = re.compile(r"local.*|spark://[^,]+:\d+(,[^,]+:\d+)*|yarn|(k8s|sc)://.+")
_EXAMPLES = "local[4], spark://host:7077, yarn, k8s://https://host:443 or sc://host:15002"
_PATIENCE = 10  # seconds for a cluster to answer; Spark alone waits a minute, its client three
_SHIP = "install dpcomm[data] where they run, or ship an environment with --archives"


class SparkError(RuntimeError):
    """Spark could not do it; the message is its own."""


def session(master: str | None = None) -> SparkSession:
    """A Spark session on `master`, which may be a Connect server (`sc://host:15002`); under
    spark-submit, the session that it set up.

    Raises UsageError for what is no master, JavaError, and SparkError where no Spark answers.
    """
    if master is not None and not _MASTER.fullmatch(master):
        raise UsageError(f"{master!r} is no master of Spark's: give {_EXAMPLES}")
    server = master or os.environ.get("SPARK_REMOTE") or ""
    if server.startswith("sc://"):
        return _connected(server)
    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        java.set_environment()
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("dpcomm.data.prepare")
    if master is not None:
        builder = builder.master(master)
        if master.startswith("spark://"):
            _knock(master)
    package_root = str(Path(__file__).parents[2])
    with in_a_line(f"master {master}: " if master else ""):
        return (
            builder.config("spark.ui.enabled", "false")
            .config("spark.ui.showConsoleProgress", "false")
            .config("spark.executorEnv.PYTHONPATH", package_root)
            .config("spark.executorEnv.POLARS_MAX_THREADS", "1")
            .getOrCreate()
        )


def _connected(server: str) -> SparkSession:
    if find_spec("grpc") is None:
        raise SparkError(f"{server}: Spark Connect needs gRPC: pip install 'dpcomm[connect]'")
    import grpc
    from pyspark.sql import SparkSession
    from pyspark.sql.connect.client import DefaultChannelBuilder

    with in_a_line(f"{server}: "):
        channel = DefaultChannelBuilder(server).toChannel()
        try:
            grpc.channel_ready_future(channel).result(timeout=_PATIENCE)
        except grpc.FutureTimeoutError:
            raise SparkError(
                f"no Spark Connect server answers at {server} in {_PATIENCE} s: start it"
                " (start-connect-server.sh), or name another"
            ) from None
        finally:
            channel.close()
        return SparkSession.builder.remote(server).getOrCreate()


def _knock(master: str) -> None:
    """Raises SparkError where nothing listens at any place of `spark://host:port,host:port`."""
    faults = []
    for place in master.removeprefix("spark://").split(","):
        host, _, port = place.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
        except OSError as error:
            faults.append(f"{place}: {error}")
        else:
            return
    raise SparkError(
        f"no Spark master answers at {master} ({'; '.join(faults)}): start it (start-master.sh),"
        " or name another"
    )


@contextmanager
def in_a_line(about: str = "") -> Iterator[None]:
    """Spark's errors without the traces of Python and Java; a worker's own error as itself."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError) as error:
        # The first line of what Java threw; before it, py4j names the call alone.
        text = str(error).partition(".\n: ")[2] or str(error)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if own := re.search(r"WriteError: (.*)", text):
            raise store.WriteError(own[1]) from error
        if lacking := re.search(r"ModuleNotFoundError: No module named '(\w+)", text):
            raise SparkError(f"Spark's workers lack the package {lacking[1]}; {_SHIP}") from error
        if "JAVA_GATEWAY_EXITED" in text:
            lines = ["Spark did not start; above stands what Java said"]
        raise SparkError(about + (lines[0] if lines else type(error).__name__)) from error
