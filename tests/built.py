"""What only tests need is compiled when the first of them asks for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / sys.implementation.cache_tag


def build(target: str) -> Path:
    """Compiles a target of CMake; a second call compiles only what changed. Where tests' are."""
    done = subprocess.run(
        ["cmake", "--build", str(BUILD), "--target", target], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return BUILD / "tests"
