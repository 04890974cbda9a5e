"""The NCCL transport over a stand-in for the library, and what its users are told."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from built import build
from groups import all_fail, environment, results, run_threads

import dpcomm
from dpcomm import _core, arrays, cuda, nccl
from dpcomm.comm import Communicator
from dpcomm.nccl import Place

SIZES = [1, 2, 3, 4, 8]
COUNTS = [0, 1, 7, 1000, 100_003]
DTYPES = ["float64", "float32", "float16", "int64", "int32", "uint8"]
ALGORITHMS = [*_core.algorithms(), "nccl", None]


@pytest.fixture(scope="module")
def path():
    return str(build("fake_nccl") / "transport" / "libfake_nccl.so")


@pytest.fixture
def fake(path):
    library = ctypes.CDLL(path)
    yield library
    library.fake_nccl_set_version(23004)


class OnGpu(Communicator):
    """Whose arrays count as a GPU's."""

    def stream(self, source, target):
        return 0


def run(path, size, body, timeout=30):
    def rank_body(comm):
        comm.core.open_nccl(_core.NcclLibrary(path), _core.host_device())
        return body(OnGpu(comm.core))

    return run_threads(size, rank_body, timeout)


def part(rank, count, dtype="float32"):
    random = np.random.default_rng([rank, count])
    if dtype.startswith("float"):
        return random.standard_normal(count).astype(dtype)
    return random.integers(0, 100, count).astype(dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_schedule_equals_numpy_with_the_same_bits_on_every_rank(path, size, algorithm):
    def body(comm):
        kept = [part(comm.rank, n) for n in COUNTS]
        outs = [comm.all_reduce(own, algo=algorithm, out=np.empty_like(own)) for own in kept]
        assert all((own == part(comm.rank, own.size)).all() for own in kept)
        return outs

    ranks = results(run(path, size, body))
    for index, count in enumerate(COUNTS):
        given = np.stack([part(rank, count) for rank in range(size)]).astype(np.float64)
        bound = size * np.finfo(np.float32).eps * np.abs(given).sum(0)
        assert (np.abs(ranks[0][index] - given.sum(0)) <= bound).all()
        assert all(rank[index].tobytes() == ranks[0][index].tobytes() for rank in ranks)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("algorithm", ["ring", "round_robin", "nccl"])
def test_ops_and_dtypes_equal_numpy(path, dtype, op, algorithm):
    size, count = 3, 1000

    def body(comm):
        return comm.all_reduce(part(comm.rank, count, dtype), op=op, algo=algorithm)

    if op == "mean" and not dtype.startswith("float"):
        assert all("is not defined" in str(error) for error in run(path, size, body, 2))
        return
    given = np.stack([part(rank, count, dtype) for rank in range(size)])
    with np.errstate(over="ignore"):
        exact = getattr(given, op)(axis=0, **({"dtype": dtype} if op == "sum" else {}))
    rounding = 4e-3 if dtype == "float16" else 1e-6
    for result in results(run(path, size, body)):
        assert result.dtype == dtype
        np.testing.assert_allclose(result, exact, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("algorithm", ["naive", "nccl"])
def test_bfloat16_is_added_in_float32(path, algorithm):
    torch = pytest.importorskip("torch")

    def body(comm):
        value = 256.0 if comm.rank == 0 else 1.0
        return comm.all_reduce(torch.full((33,), value, dtype=torch.bfloat16), algo=algorithm)

    for result in results(run(path, 3, body)):
        assert (result == torch.tensor(258.0).to(torch.bfloat16)).all()


@pytest.mark.parametrize("algorithm", ["ring", "nccl"])
@pytest.mark.parametrize("count", [6, 3000])
def test_scaled_sums_have_the_bits_of_products_summed(path, algorithm, count):
    def body(comm):
        own, scale = part(comm.rank, count), 1 / (comm.rank + 3)
        product = own * np.float32(scale)
        assert (
            comm.all_reduce(own.copy(), algo=algorithm, scale=scale).tobytes()
            == comm.all_reduce(product.copy(), algo=algorithm).tobytes()
        )
        assert (
            comm.reduce_scatter(own, algo=algorithm, scale=scale).tobytes()
            == comm.reduce_scatter(product, algo=algorithm).tobytes()
        )

    results(run(path, 3, body))


@pytest.mark.parametrize("size", SIZES)
def test_the_other_collectives_equal_numpy(path, size):
    def body(comm):
        own = part(comm.rank, 24 * size)
        found = [
            (comm.reduce_scatter(own.reshape(-1, 3), algo=name), comm.all_gather(own, algo=name))
            for name in ("ring", "round_robin", "nccl", None)
        ]
        swapped = comm.all_to_all(own)
        root = size - 1
        reduced = comm.reduce(own.copy(), root=root)
        sent = comm.broadcast(own.copy(), root=root)
        comm.barrier()
        return found, swapped, reduced, sent

    given = np.stack([part(rank, 24 * size) for rank in range(size)])
    total = given.astype(np.float64).sum(0)
    for rank, (found, swapped, reduced, sent) in enumerate(results(run(path, size, body))):
        for scattered, gathered in found:
            shard = total.reshape(size, 8, 3)[rank]
            np.testing.assert_allclose(scattered, shard, rtol=1e-5, atol=1e-5)
            assert (gathered == given.ravel()).all()
        assert (swapped.reshape(size, 24) == given.reshape(size, size, 24)[:, rank]).all()
        expected = total if rank == size - 1 else given[rank]
        np.testing.assert_allclose(reduced, expected, rtol=1e-5, atol=1e-5)
        assert (sent == given[size - 1]).all()


@pytest.mark.parametrize("algorithm", [*_core.algorithms(), ""])
@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("count", [5, 1000, 4 * 48])
def test_the_epilogue_sees_every_element_of_the_sum_once_and_changes_all_copies(
    path, algorithm, size, count
):
    def body(comm):
        seen = []

        def epilogue(pointer, offset, length):
            view = np.ctypeslib.as_array((ctypes.c_float * length).from_address(pointer))
            seen.append((offset, length, view.copy()))
            view += np.arange(offset, offset + length, dtype=np.float32)

        own = np.full(count, comm.rank + 1, np.float32)
        comm.core.all_reduce_with(own.ctypes.data, count, "float32", "sum", algorithm, epilogue, 0)
        return own, seen

    total = size * (size + 1) / 2
    times = np.zeros(count, int)
    for own, seen in results(run(path, size, body)):
        assert (own == total + np.arange(count)).all()
        for offset, length, view in seen:
            assert (view == total).all()
            times[offset : offset + length] += 1
    assert (times >= 1).all()
    if not algorithm:
        assert (times == 1).all()


def test_the_order_of_ranks_is_kept_where_it_is_asked_for(path):
    def body(comm):
        comm.core.set_deterministic()
        own = part(comm.rank, 5001)
        return comm.all_reduce(own.copy()).tobytes(), comm.all_reduce(own, algo="naive").tobytes()

    assert len({bits for pair in results(run(path, 3, body)) for bits in pair}) == 1


def test_the_gpu_and_the_cpu_take_turns_on_one_communicator(path):
    def body(comm):
        cpu = Communicator(comm.core)
        handle = comm.all_reduce(np.full(1000, 1.0), async_op=True)
        comm.settle()
        assert cpu.all_reduce(np.ones(3)).tolist() == [2, 2, 2]
        half = cpu.split(comm.rank)
        assert half.all_reduce(np.ones(1))[0] == 1
        return handle.wait()[0]

    assert results(run(path, 2, body)) == [2, 2]


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize(
    ("mine", "theirs", "texts"),
    [
        ({"count": 10}, {"count": 11}, ["(10 float64", "(11 float64"]),
        ({"dtype": "float32"}, {"dtype": "int32"}, ["float32", "int32"]),
        ({"op": "sum"}, {"op": "max"}, ["sum", "max"]),
        ({"algo": "ring"}, {"algo": "nccl"}, ["ring", "nccl"]),
    ],
)
def test_ranks_that_disagree_are_told_on_every_rank(path, size, mine, theirs, texts):
    def body(comm):
        given = {"count": 10, "dtype": "float64", "op": "sum", "algo": "nccl"}
        given |= theirs if comm.rank == size - 1 else mine
        array = np.ones(given["count"], given["dtype"])
        comm.all_reduce(array, op=given["op"], algo=given["algo"])

    all_fail(run(path, size, body, 5), dpcomm.MismatchError, "this rank is in", *texts)


def test_one_rank_on_the_gpu_and_one_on_the_cpu_are_a_mismatch(path):
    def body(comm):
        (comm if comm.rank else Communicator(comm.core)).all_reduce(np.ones(9))

    all_fail(run(path, 2, body, 5), dpcomm.MismatchError, "nccl", "round_robin")


def test_an_error_in_the_background_ends_the_collective_on_every_rank(path, fake):
    def body(comm):
        comm.all_reduce(np.ones(4))
        if comm.rank == 1:
            fake.fake_nccl_fail(1, 6)
        comm.barrier()
        begin = time.monotonic()
        try:
            comm.all_reduce(np.ones(4))
        finally:
            assert time.monotonic() - begin < 5
            with pytest.raises(dpcomm.LostPeerError):
                comm.all_reduce(np.ones(4))

    outcomes = run(path, 3, body)
    all_fail(
        outcomes, dpcomm.LostPeerError, "NCCL 2.30.4 failed in all_reduce #", "a planted error"
    )
    assert "rank 1 ended the job" in str(outcomes[0])


def test_a_rank_that_breaks_off_between_the_halves_is_named_by_those_who_wait(path):
    def body(comm):
        def epilogue(*_):
            if comm.rank == 1:
                raise ZeroDivisionError("planted")

        own = np.ones(64, np.float32)
        begin = time.monotonic()
        try:
            comm.core.all_reduce_with(own.ctypes.data, 64, "float32", "sum", "", epilogue, 0)
        finally:
            assert time.monotonic() - begin < 5

    first, second, third = run(path, 3, body)
    assert isinstance(second, ZeroDivisionError)
    all_fail(
        [first, third], dpcomm.LostPeerError, "rank 1 ended the job: interrupted in all_reduce"
    )


@pytest.mark.parametrize("late", [True, False])
def test_a_rank_that_is_late_or_gone_is_noticed_by_those_who_wait(path, late):
    def body(comm):
        if comm.rank != 1:
            comm.all_reduce(np.ones(4))
        elif late:
            time.sleep(1.5)

    kind = dpcomm.TimeoutError if late else dpcomm.LostPeerError
    outcomes = run(path, 3, body, 0.5)
    all_fail([outcomes[0], outcomes[2]], kind, "rank 1", "all_reduce #")


def test_a_gpu_that_waits_past_the_deadline_says_so(path):
    def body(comm):
        def epilogue(*_):
            time.sleep(1.5 * (comm.rank == 1))

        own = np.ones(64, np.float32)
        comm.core.all_reduce_with(own.ctypes.data, 64, "float32", "sum", "", epilogue, 0)

    outcome = run(path, 2, body, 0.5)[0]
    assert isinstance(outcome, dpcomm.TimeoutError)
    for text in ("timeout 0.5 s in all_reduce #", "over nccl", "DPCOMM_TIMEOUT=1"):
        assert text in str(outcome)


def test_algorithms_are_refused_where_they_do_not_belong(path):
    def body(comm):
        with pytest.raises(ValueError, match="'mpi' is not for memory of a GPU"):
            comm.all_reduce(np.ones(2), algo="mpi")
        with pytest.raises(ValueError, match="'nccl' is not for memory of the CPU"):
            Communicator(comm.core).all_reduce(np.ones(2), algo="nccl")
        return comm.all_reduce(np.ones(1))[0]

    assert results(run(path, 2, body)) == [2, 2]


def test_an_old_library_or_none_is_refused(path, fake):
    fake.fake_nccl_set_version(21705)
    with pytest.raises(dpcomm.EnvironmentError, match=r"is NCCL 2\.17\.5, dpcomm needs 2\.18\.0"):
        _core.NcclLibrary(path)
    with pytest.raises(dpcomm.EnvironmentError, match=r"cannot be opened: .*no-such-library"):
        _core.NcclLibrary("/no-such-library.so")
    with pytest.raises(dpcomm.EnvironmentError, match="has no ncclGetVersion"):
        _core.NcclLibrary("libm.so.6")


def test_the_environment_names_another_library(path):
    code = "from dpcomm import _core; print(_core.NcclLibrary('/nowhere').version)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(DPCOMM_NCCL=path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "23004"


def test_ranks_share_a_gpu_only_where_nccl_lets_them():
    alone, shared = [Place("a", 22809), Place("b", 22809)], [Place("a", 22809)] * 2
    assert not nccl.check(alone, [0, 0])
    assert not nccl.check(shared, [0, 1])
    with pytest.raises(dpcomm.EnvironmentError, match=r"0 and 1 share the GPU a.*2\.28\.9"):
        nccl.check(shared, [0, 0])
    assert nccl.check([Place("a", 23000)] * 2, [0, 0])
    with pytest.raises(dpcomm.EnvironmentError, match=r"2\.28\.9 on rank 0 and 2\.30\.0 on rank 1"):
        nccl.check([Place("a", 22809), Place("b", 23000)], [0, 0])
    with pytest.raises(dpcomm.EnvironmentError, match="rank 1 cannot use NCCL: no library"):
        nccl.check([Place("a", 22809), Place("", 0, "no library")], [0, 0])


@pytest.fixture
def gpus(path, monkeypatch):
    """A machine whose float arrays are on GPUs, a thread's on the one of its `index`; or on 0."""
    torch = pytest.importorskip("torch")
    here = threading.local()
    describe = arrays.describe

    def floats_on_gpu(array):
        described = describe(array)
        if described.dtype.startswith("float"):
            described.device = f"cuda:{getattr(here, 'index', 0)}"
        return described

    def add_noise(place, *arguments):
        _core.add_noise(*arguments)

    kernels = SimpleNamespace(
        uuid="GPU-{}".format, gpu=lambda _: _core.host_device(), add_noise=add_noise
    )
    monkeypatch.setattr(arrays, "describe", floats_on_gpu)
    monkeypatch.setattr(nccl, "library", lambda: path)
    monkeypatch.setattr(cuda, "kernels", lambda: kernels)
    monkeypatch.setattr(cuda, "place", lambda view: (int(view.device[5:]), 0))
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    for name in nccl._SHARED:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return here


@pytest.mark.parametrize("shared", [False, True])
def test_the_first_array_on_a_gpu_opens_the_library(gpus, shared):
    def body(comm):
        gpus.index = 0 if shared else comm.rank
        handle = comm.all_reduce(np.ones(9), async_op=True)
        assert comm.reduce_scatter(np.ones(4), op="max").tolist() == [1, 1]
        assert comm.gpu == gpus.index
        half = comm.split(0)
        assert half.gpu is None
        assert half.all_reduce(np.ones(3), algo="nccl").tolist() == [2] * 3
        return handle.wait().tolist()

    assert results(run_threads(2, body)) == [[2] * 9] * 2
    assert os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") == ("1" if shared else None)


def test_ranks_that_may_not_share_their_gpu_are_told_alike(gpus, fake):
    fake.fake_nccl_set_version(22809)

    def body(comm):
        with pytest.raises(dpcomm.EnvironmentError, match="share the GPU GPU-0, and NCCL 2"):
            comm.all_reduce(np.ones(9))
        return comm.all_reduce(np.ones(1, int))[0]

    assert results(run_threads(2, body)) == [2, 2]


def test_a_rank_has_one_gpu_and_a_call_one_device(gpus):
    def body(comm):
        gpus.index = comm.rank
        comm.all_reduce(np.ones(2))
        gpus.index = 7
        with pytest.raises(ValueError, match=r"on cuda:7, but this communicator's GPU is cuda:\d"):
            comm.all_reduce(np.ones(2))
        with pytest.raises(ValueError, match="arrays on cuda:7 and cpu: give one device"):
            comm.stream(arrays.describe(np.ones(2)), arrays.describe(np.ones(2, int)))

    assert run_threads(2, body) == [None, None]


def test_a_private_step_on_gpus_adds_each_noise_once_between_the_halves(gpus):
    size, count, std, batch = 3, 1003, 1.5, 60

    def body(comm):
        step = dpcomm.PrivateStep(comm, count, 1.0, std, batch, unsafe_seed=1)
        step(np.zeros(count, np.float32))
        return step(np.full(count, comm.rank, np.float32)), step._key

    for mean, key in results(run_threads(size, body)):
        expected = np.full(count, 3, np.float32)
        noise = _core.NoiseSpec(key, 1, std)
        _core.add_noise(expected.ctypes.data, count, 0, noise, 1 / batch)
        np.testing.assert_array_equal(mean, expected)


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_so_by_name():
    command = [sys.executable, "-m", "dpcomm.bench", "all_reduce", "--transport", "nccl"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 3
    assert "transport nccl needs" in done.stderr
