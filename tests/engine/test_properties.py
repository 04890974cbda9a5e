"""Any collective that is drawn, over threads: what NumPy says, to the rounding of the dtype."""

from __future__ import annotations

import numpy as np
from groups import results, run_threads
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcomm import _core

FLOATS = ["float64", "float32", "float16"]
DTYPES = [*FLOATS, "int64", "int32", "uint8"]


@st.composite
def cases(draw, sizes):
    operation = draw(
        st.sampled_from(
            ["all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce", "all_to_all"]
        )
    )
    dtype = draw(st.sampled_from(DTYPES))
    algorithms = {
        "all_reduce": [None, *_core.algorithms()],
        "reduce_scatter": [None, "ring", "round_robin"],
        "all_gather": [None, "ring", "round_robin"],
    }.get(operation, [None])
    size = draw(sizes)
    return {
        "operation": operation,
        "dtype": dtype,
        "op": draw(st.sampled_from(["sum", "max", "min"] + ["mean"] * (dtype in FLOATS))),
        "algo": draw(st.sampled_from(algorithms)),
        "size": size,
        "root": draw(st.integers(0, size - 1)),
        # Around a line, what is posted whole, and a piece of the second-level cache.
        "count": draw(
            st.one_of(st.integers(0, 40), st.integers(120, 1100), st.integers(16_000, 70_000))
        ),
        "in_place": draw(st.booleans()),
        "scaled": draw(st.booleans()),
        "registered": draw(st.booleans()),
    }


def values(case, rank):
    count = case["count"]
    if case["operation"] in ("reduce_scatter", "all_to_all"):
        count *= case["size"]
    random = np.random.default_rng([rank, count])
    return random.integers(0, 6, count).astype(case["dtype"])


def scale_of(case, rank):
    """A power of two, so that products are exact."""
    possible = case["scaled"] and case["op"] == "sum" and case["dtype"] in FLOATS
    return 2.0 ** (rank % 3 - 1) if possible else 1.0


def buffer(comm, case, array):
    if not case["registered"]:
        return array
    copy = comm.empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def call(comm, case):
    array = buffer(comm, case, values(case, comm.rank))
    operation, root = case["operation"], case["root"]
    reduction = {"op": case["op"], "scale": scale_of(case, comm.rank)}
    count = case["count"]
    mine = slice(comm.rank * count, (comm.rank + 1) * count)
    if operation == "all_reduce":
        out = None if case["in_place"] else np.empty_like(array)
        return comm.all_reduce(array, algo=case["algo"], out=out, **reduction)
    if operation == "reduce_scatter":
        out = array[mine] if case["in_place"] else None
        return comm.reduce_scatter(array, algo=case["algo"], out=out, **reduction)
    if operation == "all_gather":
        whole = buffer(comm, case, np.zeros(count * comm.size, array.dtype))
        whole[mine] = array
        source = whole[mine] if case["in_place"] else array
        return comm.all_gather(source, algo=case["algo"], out=whole)
    if operation == "reduce":
        out = None if case["in_place"] else np.empty_like(array)
        return comm.reduce(array, root=root, out=out, **reduction)
    if operation == "broadcast":
        return comm.broadcast(array, root=root)
    return comm.all_to_all(array)


def expected(case, rank):
    size, root = case["size"], case["root"]
    given_values = [values(case, peer) for peer in range(size)]
    operation = case["operation"]
    if operation == "broadcast":
        return given_values[root]
    if operation == "all_gather":
        return np.concatenate(given_values)
    if operation == "all_to_all":
        return np.concatenate([array.reshape(size, -1)[rank] for array in given_values])
    if operation == "reduce" and rank != root:
        return given_values[rank]
    scaled = [scale_of(case, peer) * given_values[peer].astype(float) for peer in range(size)]
    total = getattr(np.stack(scaled), case["op"])(axis=0)
    return total.reshape(size, -1)[rank] if operation == "reduce_scatter" else total


def check(case, rank, result):
    assert result.dtype == case["dtype"]
    # Small integers and their halves are exact in every dtype; only a mean is rounded.
    np.testing.assert_allclose(
        result.astype(float), expected(case, rank), rtol=1e-3 if case["op"] == "mean" else 0
    )


@settings(max_examples=150, deadline=None)
@given(cases(st.integers(1, 8)))
def test_every_collective_equals_numpy(case):
    found = results(run_threads(case["size"], lambda comm: call(comm, case)))
    for rank, result in enumerate(found):
        check(case, rank, result)
    if case["operation"] == "all_reduce":
        assert all(result.tobytes() == found[0].tobytes() for result in found)
