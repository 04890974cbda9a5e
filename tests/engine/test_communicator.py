"""The collectives over threads, against NumPy, and what they refuse."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref

import numpy as np
import pytest
from groups import results, run_threads

import dpcomm
from dpcomm import _core
from dpcomm.comm import gathered_bytes, shared_bytes

SIZES = [1, 2, 3, 4, 5, 7, 8]
COUNTS = [0, 1, 2, 7, 1000, 1_000_003]
DTYPES = ["float64", "float32", "float16", "int64", "int32", "uint8"]


def part(rank: int, count: int, dtype: str = "float32") -> np.ndarray:
    random = np.random.default_rng([rank, count])
    if dtype.startswith("float"):
        return random.standard_normal(count).astype(dtype)
    return random.integers(0, 100, count).astype(dtype)


def parts(size: int, count: int, dtype: str = "float32") -> np.ndarray:
    return np.stack([part(rank, count, dtype) for rank in range(size)])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("algorithm", _core.algorithms())
def test_all_reduce_equals_numpy_with_the_same_bits_on_every_rank(size, algorithm):
    def body(comm):
        return [comm.all_reduce(part(comm.rank, n), algo=algorithm) for n in COUNTS]

    ranks = results(run_threads(size, body))
    for index, count in enumerate(COUNTS):
        given = parts(size, count).astype(np.float64)
        bound = size * np.finfo(np.float32).eps * np.abs(given).sum(0)
        assert (np.abs(ranks[0][index] - given.sum(0)) <= bound).all()
        assert all(rank[index].tobytes() == ranks[0][index].tobytes() for rank in ranks)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("algorithm", ["ring", "round_robin", "recursive_doubling"])
def test_ops_and_dtypes_equal_numpy(dtype, op, algorithm):
    size, count = 3, 1000

    def body(comm):
        return comm.all_reduce(part(comm.rank, count, dtype), op=op, algo=algorithm)

    if op == "mean" and not dtype.startswith("float"):
        assert all("is not defined" in str(error) for error in run_threads(size, body, 2))
        return
    given = parts(size, count, dtype)
    with np.errstate(over="ignore"):
        exact = getattr(given, op)(axis=0, **({"dtype": dtype} if op == "sum" else {}))
    rounding = 4e-3 if dtype == "float16" else 1e-6
    for result in results(run_threads(size, body)):
        assert result.dtype == dtype
        np.testing.assert_allclose(result, exact, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("size", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_a_mean_is_the_quotient_of_the_sum_to_the_bit(size, dtype):
    given = parts(size, 20_000, dtype)
    given[:, ::2] *= np.finfo(dtype).smallest_subnormal * 100  # whose halves are rounded too

    def body(comm):
        return comm.all_reduce(given[comm.rank].copy(), op="mean")

    wide = np.result_type(dtype, np.float32)
    total = given[0].astype(wide)
    for row in given[1:]:
        total += row
    mean = (total.astype(dtype).astype(wide) / size).astype(dtype)
    for result in results(run_threads(size, body)):
        assert result.tobytes() == mean.tobytes()


def test_bfloat16_is_added_in_float32():
    torch = pytest.importorskip("torch")
    size = 8  # 256 + 7 * 1: in bfloat16 each addition of 1 to 256 would be lost

    def body(comm):
        value = 256.0 if comm.rank == 0 else 1.0
        return comm.all_reduce(torch.full((33,), value, dtype=torch.bfloat16), algo="naive")

    for result in results(run_threads(size, body)):
        assert (result == torch.tensor(263.0).to(torch.bfloat16)).all()


@pytest.mark.parametrize("op", ["max", "min"])
def test_a_nan_wins_over_every_number(op):
    def body(comm):
        return comm.all_reduce(np.array([np.nan if comm.rank == 1 else float(comm.rank)]), op=op)

    assert all(np.isnan(result).all() for result in results(run_threads(3, body)))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("algorithm", _core.algorithms())
@pytest.mark.parametrize("count", [5, 3000])
def test_a_scaled_sum_is_the_sum_of_products_rounded_to_the_dtype(dtype, algorithm, count):
    """So it has the bits of a sum of arrays that were scaled before."""
    size = 3

    def body(comm):
        given, scale = part(comm.rank, count, dtype), 1 / (comm.rank + 3)
        wide = np.float64 if dtype == "float64" else np.float32
        product = (given.astype(wide) * wide(scale)).astype(dtype)
        before = given.copy()
        scaled = comm.all_reduce(given, algo=algorithm, scale=scale, out=np.empty_like(given))
        assert (given == before).all()
        return scaled, comm.all_reduce(product, algo=algorithm)

    for scaled, expected in results(run_threads(size, body)):
        assert scaled.tobytes() == expected.tobytes()


def test_scaled_parts_and_a_scaled_sum_at_the_root_are_those_of_all_reduce():
    def body(comm):
        given, scale = part(comm.rank, 3000), 0.1 + comm.rank
        whole = comm.all_reduce(given.copy(), scale=scale)
        shard = comm.reduce_scatter(given, scale=scale)
        assert shard.tobytes() == whole[1000 * comm.rank :][:1000].tobytes()
        ring = comm.all_reduce(given.copy(), scale=scale, algo="ring")
        parts = comm.reduce_scatter(given, scale=scale, algo="ring")
        np.testing.assert_allclose(parts, ring[1000 * comm.rank :][:1000], rtol=1e-5, atol=1e-6)
        rooted = comm.reduce(given.copy(), scale=scale, root=2)
        return comm.rank != 2 or rooted.tobytes() == whole.tobytes()

    assert all(results(run_threads(3, body)))


@pytest.mark.parametrize("size", SIZES)
def test_the_other_collectives_equal_numpy(size):
    def body(comm):
        own = part(comm.rank, 24 * size)
        before = own.copy()
        found = {
            algorithm: (
                comm.reduce_scatter(own.reshape(-1, 3), algo=algorithm),
                comm.all_gather(own.reshape(-1, 3), algo=algorithm),
            )
            for algorithm in ("ring", "round_robin")
        }
        root = size - 1
        reduced = comm.reduce(own.copy(), root=root)
        sent = comm.broadcast(own.copy(), root=root)
        comm.barrier()
        assert (own == before).all()
        return found, reduced, sent

    given = parts(size, 24 * size)
    total = given.astype(np.float64).sum(0)
    for rank, (found, reduced, sent) in enumerate(results(run_threads(size, body))):
        for scattered, gathered in found.values():
            assert scattered.shape == (8, 3)
            assert gathered.shape == (8 * size * size, 3)
            shard = total.reshape(size, 8, 3)[rank]
            np.testing.assert_allclose(scattered, shard, rtol=1e-5, atol=1e-5)
            assert (gathered.ravel() == given.ravel()).all()
        expected = total if rank == size - 1 else given[rank]
        np.testing.assert_allclose(reduced, expected, rtol=1e-5, atol=1e-5)
        assert (sent == given[size - 1]).all()


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [0, 1, 50_000])
def test_all_to_all_is_a_transpose_of_parts(size, rows):
    def body(comm):
        own = np.arange(size * rows * 2, dtype=np.int64).reshape(-1, 2) + 10**9 * comm.rank
        return own, comm.all_to_all(own)

    ranks = results(run_threads(size, body))
    given = np.stack([own.reshape(size, rows, 2) for own, _ in ranks])
    for rank, (_, received) in enumerate(ranks):
        assert (received.reshape(size, rows, 2) == given[:, rank]).all()


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_split_gives_each_color_its_own_ranks_in_the_order_of_key(size):
    def body(comm):
        part = comm.split(comm.rank % 2, key=-comm.rank)
        nobody = comm.split(-1)
        total = part.all_reduce(np.array([comm.rank], np.int64))[0]
        whole = comm.all_reduce(np.ones(1))[0]
        return part.rank, part.size, total, nobody, whole

    for rank, (place, count, total, nobody, whole) in enumerate(results(run_threads(size, body))):
        alike = [peer for peer in range(size) if peer % 2 == rank % 2]
        assert (place, count) == (sorted(alike, reverse=True).index(rank), len(alike))
        assert (total, nobody, whole) == (sum(alike), None, size)


def test_several_collectives_in_flight_finish_in_order_beside_blocking_ones():
    def body(comm):
        handles = [comm.all_reduce(np.full(10_000, i + 1.0), async_op=True) for i in range(5)]
        gathered = comm.all_gather(np.array([comm.rank]), async_op=True)
        assert comm.all_reduce(np.ones(1))[0] == 3
        assert all(handle.test() for handle in handles)
        assert gathered.wait().tolist() == [0, 1, 2]
        return [handle.wait() for handle in handles]

    for found in results(run_threads(3, body)):
        assert all((result == 3 * (i + 1)).all() for i, result in enumerate(found))


def test_arrays_in_flight_live_until_the_end_though_nobody_keeps_them():
    looked = threading.Event()

    def body(comm):
        array, out = np.ones(100_000), np.empty(100_000)
        alive = [weakref.ref(array), weakref.ref(out)]
        if comm.rank == 1:
            looked.wait(20)
        handle = comm.all_reduce(array, out=out, async_op=True)
        if comm.rank == 0:
            with pytest.raises(ValueError, match="referenc"):
                out.resize(200_000)
        del handle, array, out
        gc.collect()
        in_flight = [ref() is not None for ref in alive]
        looked.set()
        comm.barrier()
        gc.collect()
        return in_flight if comm.rank == 0 else None, [ref() is None for ref in alive]

    found = results(run_threads(2, body))
    assert found[0] == ([True, True], [True, True])


def test_an_error_in_flight_is_raised_by_wait():
    def body(comm):
        handle = comm.all_reduce(np.ones(2 + comm.rank), async_op=True)
        with pytest.raises(_core.MismatchError):
            handle.wait()

    assert run_threads(2, body, 5) == [None, None]


def test_out_leaves_the_input_alone_and_the_type_comes_back():
    torch = pytest.importorskip("torch")

    def body(comm):
        own, out = torch.ones(5), torch.empty(5)
        assert comm.all_reduce(own, out=out) is out
        assert (own == 1).all()
        assert isinstance(comm.all_gather(own), torch.Tensor)
        assert isinstance(comm.reduce_scatter(np.ones(4)), np.ndarray)
        return out

    assert all((out == 2).all() for out in results(run_threads(2, body)))


@pytest.mark.parametrize("algorithm", _core.algorithms())
@pytest.mark.parametrize("size", [1, 3, 4, 8])
def test_the_epilogue_sees_every_element_of_the_sum_once_and_changes_all_copies(algorithm, size):
    """Elements are completed by one rank, or alike by several; offsets are global and whole."""
    count = 1000

    def body(comm):
        seen = []

        def epilogue(pointer, offset, length):
            view = np.ctypeslib.as_array((ctypes.c_float * length).from_address(pointer))
            seen.append((offset, length, view.copy()))
            view += np.arange(offset, offset + length, dtype=np.float32)

        own = np.full(count, comm.rank + 1, np.float32)
        comm.core.all_reduce_with(own.ctypes.data, count, "float32", "sum", algorithm, epilogue)
        return own, seen

    total = size * (size + 1) / 2
    covered = np.zeros(count, bool)
    for own, seen in results(run_threads(size, body)):
        assert (own == total + np.arange(count)).all()
        for offset, length, view in seen:
            assert offset % 16 == 0
            assert (view == total).all()
            covered[offset : offset + length] = True
    assert covered.all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda comm: comm.all_reduce(np.ones((4, 4)).T), "rank ./2: tensor has strides"),
        (lambda comm: comm.all_reduce(np.ones(2, "complex64")), "dtype 'complex64' is not"),
        (lambda comm: comm.all_reduce(np.ones(2), op="prod"), "op 'prod' is unknown"),
        (lambda comm: comm.all_reduce(np.ones(2), algo="rings"), "algorithm 'rings' is unknown"),
        (lambda comm: comm.all_reduce(np.ones(2), out=np.ones(3)), "out is float64 .3,."),
        (lambda comm: comm.all_reduce(np.ones(2, int), scale=2), "scale=2 with op='sum' of int64"),
        (lambda comm: comm.all_reduce(np.ones(2), op="max", scale=2), "scale=2 with op='max'"),
        (lambda comm: comm.reduce_scatter(np.ones(3)), "leaves a rest"),
        (lambda comm: comm.broadcast(np.ones(2), root=2), "root 2 is no rank"),
    ],
)
def test_bad_arguments_are_refused_by_name_and_the_communicator_lives_on(call, message):
    def body(comm):
        with pytest.raises(ValueError, match=message):
            call(comm)
        return comm.all_reduce(np.ones(3))

    assert all((result == 2).all() for result in results(run_threads(2, body)))


def _shifted(comm):
    array = np.arange(9.0)
    comm.all_reduce(array[:-1], out=array[1:])


def _gathered_into_another_place(comm):
    array = np.arange(4.0)
    other = 2 - 2 * comm.rank
    comm.all_gather(array[other : other + 2], out=array)


@pytest.mark.parametrize("call", [_shifted, _gathered_into_another_place])
def test_an_out_that_overlaps_the_input_in_part_is_refused(call):
    for outcome in run_threads(2, call):
        assert isinstance(outcome, dpcomm.UsageError)
        assert "overlaps" in str(outcome)


def test_an_out_that_holds_the_input_in_its_place_is_right():
    def body(comm):
        array, whole = np.full(4, float(comm.rank)), np.full(4, 1.0)
        mine = slice(2 * comm.rank, 2 * comm.rank + 2)
        comm.all_gather(array[mine], out=array)
        comm.reduce_scatter(whole, out=whole[mine])
        comm.all_reduce(whole[mine], out=whole[mine])
        return array.tolist(), whole[mine].tolist()

    assert results(run_threads(2, body)) == [([0, 0, 1, 1], [4, 4])] * 2


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("length", [0, 1, 5000])
def test_bytes_of_any_length_go_to_and_from_all_ranks(size, length):
    def body(comm):
        own = bytes([comm.rank]) * (length * (comm.rank + 1))
        return shared_bytes(comm, own), gathered_bytes(comm, own)

    every = [bytes([rank]) * (length * (rank + 1)) for rank in range(size)]
    assert results(run_threads(size, body)) == [(every[0], every)] * size
