"""clang-tidy over the core and, through the SIMT machine's headers, over the CUDA kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from groups import ROOT

CSRC = ROOT / "csrc"
# What needs the headers of CUDA or MPI, or is written in GCC's own vectors.
OTHERS = ("gpu.cpp", "mpi*.cpp", "*_lanes.cpp")
FLAGS = ["-xc++", "-std=c++20", f"-I{CSRC / 'simt'}", f"-I{CSRC}", "-Wno-everything"]


def tidy(path: Path) -> str:
    """What it complains of, or nothing."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    program = shutil.which("clang-tidy", path=search)
    if program is None:
        pytest.skip("clang-tidy is not installed")
    command = [program, "--quiet", f"--config-file={ROOT / '.clang-tidy'}", str(path), "--", *FLAGS]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_the_core_and_the_kernels_are_clean():
    sources = [
        path
        for path in sorted([*CSRC.glob("*/*.cpp"), *CSRC.glob("*/*.cu")])
        if not any(path.match(other) for other in OTHERS)
    ]
    assert len([path for path in sources if path.suffix == ".cu"]) >= 4
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = "".join(pool.map(tidy, sources))
    assert not found, found


def test_a_planted_mistake_is_seen(tmp_path):
    planted = tmp_path / "planted.cu"
    kernel = (CSRC / "base" / "device_cuda.cu").read_text()
    planted.write_text(kernel.replace("if (i < count) out[i]", "if (i < count); out[i]"))
    assert "bugprone-suspicious-semicolon" in tidy(planted)
