"""Failures over MPI, where messages alone tell of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from groups import mpirun

PROGRAM = Path(__file__).parent / "programs" / "failing.py"


@pytest.mark.parametrize("case", ["again"])
def test_a_failure_is_told_at_once_and_by_every_later_call(case):
    assert mpirun(3, PROGRAM, case, timeout=60).count("was told") == 3
