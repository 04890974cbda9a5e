"""A rank may have children: what they let go of is still the rank's."""

from __future__ import annotations

from pathlib import Path

from groups import mpirun

PROGRAMS = Path(__file__).parent / "programs"


def test_a_forked_child_leaves_the_shared_memory_of_its_parent_alone():
    assert mpirun(2, PROGRAMS / "forked.py", timeout=60).count("holds") == 2
