"""Failures over MPI, where messages alone tell of them."""

from __future__ import annotations

from pathlib import Path

from groups import mpirun

PROGRAM = Path(__file__).parent / "programs" / "failing.py"


def test_a_failure_is_told_at_once_and_by_every_later_call():
    assert mpirun(3, PROGRAM, "again", timeout=60).count("holds") == 3


def test_a_failure_is_told_to_those_who_only_send():
    assert mpirun(3, PROGRAM, "sends", timeout=60).count("holds") == 3


def test_a_split_waits_for_its_members_until_the_deadline():
    assert mpirun(3, PROGRAM, "split", timeout=60).count("holds") == 3


def test_an_mpi_for_one_thread_at_a_time_is_refused():
    assert mpirun(2, PROGRAM, "threads", timeout=60).count("holds") == 2
