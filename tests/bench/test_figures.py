"""The README's figures are those of the records."""

from __future__ import annotations

import subprocess
import sys

from groups import ROOT


def test_the_readme_shows_the_records_that_are_committed():
    script = str(ROOT / "benchmarks" / "figures.py")
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert printed.stdout in (ROOT / "README.md").read_text(), (
        "fix: python benchmarks/figures.py --write"
    )
