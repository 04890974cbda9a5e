"""Failures over MPI, where messages alone tell of them."""

from __future__ import annotations

from pathlib import Path

from groups import mpirun

PROGRAM = Path(__file__).parent / "programs" / "failing.py"


def test_a_failure_is_told_at_once_and_by_every_later_call():
    assert mpirun(3, PROGRAM, "again", timeout=60).count("holds") == 3


# MPI is not finalised after these, and may kill, and tell of, the last that end.
def test_a_failure_is_told_to_those_who_only_send():
    output = mpirun(3, PROGRAM, "sends", timeout=60, check=False)
    assert output.count("holds") == 3, output


def test_a_deadline_with_long_messages_under_way_is_an_error_and_no_crash():
    output = mpirun(4, PROGRAM, "late", timeout=60, check=False)
    assert output.count("holds") == 4, output


def test_a_split_waits_for_its_members_until_the_deadline():
    assert mpirun(3, PROGRAM, "split", timeout=60).count("holds") == 3


def test_an_mpi_for_one_thread_at_a_time_is_refused():
    assert mpirun(2, PROGRAM, "threads", timeout=60).count("holds") == 2
