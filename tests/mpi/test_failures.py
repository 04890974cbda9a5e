"""Failures over MPI, where messages alone tell of them."""

from __future__ import annotations

from pathlib import Path

from groups import mpirun

PROGRAM = Path(__file__).parent / "programs" / "failing.py"


def holds(size: int, case: str) -> None:
    # The code is MPI's say: it is not finalised after a failure, and may kill the last that end.
    output = mpirun(size, PROGRAM, case, timeout=60, check=False)
    assert output.count("holds") == size, output


def test_a_failure_is_told_at_once_and_by_every_later_call():
    holds(3, "again")


def test_a_failure_is_told_to_those_who_only_send():
    holds(3, "sends")


def test_a_deadline_with_long_messages_under_way_is_an_error_and_no_crash():
    holds(4, "late")


def test_a_split_waits_for_its_members_until_the_deadline():
    holds(3, "split")


def test_an_mpi_for_one_thread_at_a_time_is_refused():
    holds(2, "threads")
