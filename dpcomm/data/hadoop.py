"""A file system that only Hadoop knows (`hdfs://`, `viewfs://`, …), through Hadoop's own client.

pyarrow's way to HDFS wants libhdfs, which neither Spark nor a wheel brings; Hadoop's client is
among Spark's jars. It runs in the JVM that Spark's driver has already; elsewhere in one beside this
process, that ends with it. What is written lies in a local temporary file until it is whole and
copied.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyspark
from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
from py4j.protocol import Py4JJavaError
from pyarrow import fs
from pyspark import SparkContext
from pyspark.errors import PySparkException

from dpcomm.data import java


def _jvm() -> Any:
    # With a session in this process, pyspark reads the errors of every JVM as that session's.
    return SparkContext._jvm or _own_jvm(os.getpid())


@cache
def _own_jvm(process: int) -> Any:
    jars = Path(os.environ.get("SPARK_HOME") or Path(pyspark.__file__).parent, "jars")
    if not (py4j := sorted(jars.glob("py4j-*.jar"))):
        raise OSError(f"no Hadoop client: {jars} holds none of Spark's jars; set SPARK_HOME")
    beside = (os.environ.get(name) for name in ("HADOOP_CONF_DIR", "SPARK_DIST_CLASSPATH"))
    port, token = launch_gateway(
        jarpath=str(py4j[0]),
        classpath=os.pathsep.join([*filter(None, beside), f"{jars}/*"]),
        java_path=str(java.find() / "bin" / "java"),
        javaopts=["-Xmx256m"],
        die_on_exit=True,
        enable_auth=True,
    )
    return JavaGateway(gateway_parameters=GatewayParameters(port=port, auth_token=token)).jvm


@contextmanager
def _os_errors() -> Iterator[None]:
    try:
        yield
    except Py4JJavaError as error:
        raise OSError(str(error.java_exception.toString()).splitlines()[0]) from None
    except PySparkException as error:
        raise OSError(str(error).splitlines()[0]) from None


class Hadoop:
    """The part of `pyarrow.fs.FileSystem` that writing a prepared folder takes; paths are URIs.

    `settings` are Hadoop's, above those of the files in HADOOP_CONF_DIR. Raises OSError.
    """

    def __init__(self, uri: str, settings: Mapping[str, str]) -> None:
        self._hadoop = _jvm().org.apache.hadoop
        configuration = self._hadoop.conf.Configuration()
        for name, value in settings.items():
            configuration.set(name, value)
        with _os_errors():
            place = self._path(uri).toUri()
            self._files = self._hadoop.fs.FileSystem.newInstance(place, configuration)

    def _path(self, path: str) -> Any:
        return self._hadoop.fs.Path(path)

    @_os_errors()
    def get_file_info(self, wanted: str | fs.FileSelector) -> Any:
        """Of a path; or, of a selector, those in its folder, none where there is no such folder."""
        if isinstance(wanted, str):
            if not self._files.exists(self._path(wanted)):
                return fs.FileInfo(wanted, fs.FileType.NotFound)
            return self._info(self._files.getFileStatus(self._path(wanted)))
        if not self._files.exists(self._path(wanted.base_dir)):
            return []
        return [self._info(held) for held in self._files.listStatus(self._path(wanted.base_dir))]

    def _info(self, status: Any) -> fs.FileInfo:
        path = status.getPath().toString()
        if status.isDirectory():
            return fs.FileInfo(path, fs.FileType.Directory)
        return fs.FileInfo(path, fs.FileType.File, size=status.getLen())

    @_os_errors()
    def create_dir(self, path: str) -> None:
        self._files.mkdirs(self._path(path))

    @_os_errors()
    def delete_dir(self, path: str) -> None:
        self._files.delete(self._path(path), True)

    @_os_errors()
    def delete_file(self, path: str) -> None:
        self._files.delete(self._path(path), False)

    @_os_errors()
    def move(self, source: str, to: str) -> None:
        """Renames; Hadoop refuses where `to` exists, as it does when a task runs again."""
        self._files.delete(self._path(to), False)
        if not self._files.rename(self._path(source), self._path(to)):
            raise OSError(f"cannot rename {source} to {to}")

    def open_output_stream(self, path: str) -> io.BufferedWriter:
        return _Upload(self, path)

    @_os_errors()
    def upload(self, local: str, path: str) -> None:
        self._files.copyFromLocalFile(False, True, self._path(f"file://{local}"), self._path(path))


class _Upload(io.BufferedWriter):
    """A local file that is copied to its place when it is closed."""

    def __init__(self, hadoop: Hadoop, path: str) -> None:
        descriptor, self._local = tempfile.mkstemp(prefix="dpcomm-")
        super().__init__(io.FileIO(descriptor, "wb"))
        self._hadoop, self._path = hadoop, path

    def close(self) -> None:
        if self.closed:
            return
        try:
            super().close()
            self._hadoop.upload(self._local, self._path)
        finally:
            os.unlink(self._local)
