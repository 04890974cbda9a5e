"""Ranks that disagree, leave or are late: an error on every rank, with both sides in it.

Once each; `pytest -m slow` twenty times.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from groups import all_fail, run_threads

import dpcomm

LARGE = 1 << 20  # more than the streams hold, so that senders block


@pytest.fixture(
    autouse=True, params=[0, *(pytest.param(turn, marks=pytest.mark.slow) for turn in range(1, 20))]
)
def _turn(request) -> int:
    return request.param


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("count", [4, LARGE])
@pytest.mark.parametrize("other", ["broadcast", "barrier", "all_gather"])
def test_another_operation_is_an_error_on_every_rank(size, count, other):
    def body(comm):
        array = np.ones(count)
        if comm.rank == size - 1:
            comm.all_reduce(array)
        elif other == "barrier":
            comm.barrier()
        else:
            getattr(comm, other)(array)
        comm.barrier()  # where a rank that had only to send learns of it

    all_fail(run_threads(size, body, 5), dpcomm.MismatchError, "all_reduce #1", "this rank is in")


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize(
    ("mine", "theirs", "texts"),
    [
        ({"count": 10}, {"count": 11}, ["(10 float64", "(11 float64"]),
        ({"count": LARGE}, {"count": LARGE + 1}, [f"({LARGE} float64", f"({LARGE + 1} float64"]),
        ({"dtype": "float32"}, {"dtype": "int32"}, ["float32", "int32"]),
        ({"op": "sum"}, {"op": "max"}, ["sum", "max"]),
        ({"algo": "ring"}, {"algo": "naive"}, ["ring", "naive"]),
    ],
)
def test_other_arguments_are_an_error_on_every_rank(size, mine, theirs, texts):
    def body(comm):
        given = {"count": 10, "dtype": "float64", "op": "sum", "algo": "ring"}
        given |= theirs if comm.rank == size - 1 else mine
        array = np.ones(given["count"], given["dtype"])
        comm.all_reduce(array, op=given["op"], algo=given["algo"])
        comm.barrier()

    all_fail(run_threads(size, body, 5), dpcomm.MismatchError, *texts)


@pytest.mark.parametrize("count", [4, LARGE])
def test_two_roots_are_an_error_on_every_rank(count):
    def body(comm):
        comm.broadcast(np.ones(count), root=comm.rank)
        comm.barrier()

    all_fail(run_threads(2, body, 5), dpcomm.MismatchError, "broadcast #1", "root")


@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_late_rank_is_named_at_the_deadline_with_what_it_did_last(size):
    def body(comm):
        comm.all_reduce(np.ones(4))
        if comm.rank == 1:
            time.sleep(1.5)
        comm.all_reduce(np.ones(4), algo="naive")

    begin = time.monotonic()
    outcomes = run_threads(size, body, 0.5)
    assert time.monotonic() - begin < 5
    all_fail(
        outcomes,
        dpcomm.TimeoutError,
        "timeout 0.5 s in all_reduce #2, round 1/1, naive over local",
        "DPCOMM_TIMEOUT=1",
        "waiting for rank 1, last seen in all_reduce #1",
        "fix:",
    )


# Waits look at the clock each 100 ms at most: these come after the deadline, and before the look.
@pytest.mark.parametrize("late", [0.57, 0.58])
def test_who_comes_at_the_deadline_is_in_time_for_all_or_for_none(late):
    def body(comm):
        comm.barrier()
        if comm.rank == 1:
            time.sleep(late)
        return float(comm.all_reduce(np.ones(4))[0])

    outcomes = run_threads(2, body, 0.55)
    if outcomes != [2, 2]:
        all_fail(outcomes, dpcomm.TimeoutError, "waiting for rank 1")


@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_rank_that_leaves_is_named_at_once(size):
    def body(comm):
        comm.barrier()
        if comm.rank == size - 1:
            return None
        return comm.all_reduce(np.ones(LARGE), algo="naive")

    begin = time.monotonic()
    outcomes = run_threads(size, body, 30)
    assert time.monotonic() - begin < 5
    all_fail(outcomes[:-1], dpcomm.LostPeerError, f"rank {size - 1} left the job")


def test_after_an_error_every_call_raises_it_again():
    def body(comm):
        if comm.rank == 0:
            comm.core.abort("ValueError: planted")
            return
        for _ in range(2):
            with pytest.raises(dpcomm.LostPeerError, match="rank 0 ended the job: ValueError: pl"):
                comm.barrier()
        return

    assert run_threads(3, body, 5) == [None, None, None]
