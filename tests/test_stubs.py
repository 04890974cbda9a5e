"""The stub of the compiled core is generated, and is held to what the core has: `make stubs`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

STUB = Path(__file__).resolve().parent.parent / "dpcomm" / "_core.pyi"


def generate(folder: Path) -> str:
    """What pybind11-stubgen says of the core, formatted."""
    command = [sys.executable, "-m", "pybind11_stubgen", "dpcomm._core", "-o", str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=STUB.parent.parent)
    text = (folder / "dpcomm" / "_core.pyi").read_text()
    # Our TimeoutError is also Python's, of the same name.
    text = text.replace("(Error, TimeoutError)", "(Error, builtins.TimeoutError)")
    text = text.replace("import typing\n", "import builtins\nimport typing\n", 1)
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", "_core.pyi", "-"]
    return subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout


def test_the_stub_says_what_the_core_has(tmp_path):
    assert generate(tmp_path) == STUB.read_text(), "run make stubs"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        STUB.write_text(generate(Path(scratch)))
