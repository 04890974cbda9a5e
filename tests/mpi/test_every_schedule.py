"""All-reduce by every schedule, over shared memory and over MPI, at every rank count."""

from __future__ import annotations

from pathlib import Path

import pytest
from groups import mpirun

PROGRAM = Path(__file__).parent / "programs" / "every_schedule.py"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8])
def test_every_schedule_equals_numpy_with_the_same_bits_on_every_rank(size):
    output = mpirun(size, PROGRAM)
    assert f"shm of {size} ranks holds" in output
    assert f"mpi of {size} ranks holds, dpcomm._mpi\n" in output


def test_every_schedule_holds_over_the_standard_abi_without_mpi4py():
    assert "mpi of 4 ranks holds, dpcomm._mpi_abi\n" in mpirun(4, PROGRAM, "without-mpi4py")


@pytest.mark.parametrize("transport", ["shm", "mpi"])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_any_collective_that_is_drawn_equals_numpy(size, transport):
    drawn = PROGRAM.with_name("drawn.py")
    assert f"{transport} of {size} ranks holds" in mpirun(size, drawn, transport)
