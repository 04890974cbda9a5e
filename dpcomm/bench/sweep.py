"""Measures a collective over a range of sizes, and checks every result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpcomm import _core
from dpcomm.bench import gpu, peers
from dpcomm.bench.record import Record, bandwidths, slowest_rank_median

if TYPE_CHECKING:
    from dpcomm.comm import Communicator
    from dpcomm.tuner import Tuning

# The operations whose buffers are cut into one shard a rank, of which one goes in or comes out.
_SHARDED = ("reduce_scatter", "all_gather")
_IN_PLACE = ("all_reduce", "broadcast", "reduce", "barrier")
_REDUCING = ("all_reduce", "reduce_scatter", "reduce")

_SAMPLE_SECONDS = 4e-3  # a turn of Linux' scheduler, where ranks outnumber cores
_MOST_CALLS = 4096


@dataclass(frozen=True)
class Sweep:
    """What to measure. Sizes are in bytes, of the largest buffer that the operation touches."""

    op: str
    sizes: tuple[int, ...]
    dtype: str = "float32"
    redop: str = "sum"
    algorithms: tuple[str | None, ...] = (None,)
    peers: tuple[str, ...] = ()
    model: Tuning | None = None
    iterations: int = 20
    warmup: int = 5
    check: bool = True
    root: int = 0
    gpu: int | None = None  # the index of the GPU whose memory our buffers are in; None: the CPU's


def dtype_of(name: str) -> np.dtype:
    """NumPy's; bfloat16 is ml_dtypes'. Raises EnvironmentError where that is missing."""
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise _core.EnvironmentError("-d bfloat16: pip install ml_dtypes") from error
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def geometric(begin: int, end: int, factor: float) -> tuple[int, ...]:
    """begin, begin·factor, … up to end."""
    sizes = [begin]
    while (following := int(sizes[-1] * factor)) <= end and following > sizes[-1]:
        sizes.append(following)
    return tuple(sizes)


def arithmetic(begin: int, end: int, step: int) -> tuple[int, ...]:
    """begin, begin+step, … up to end."""
    return tuple(range(begin, end + 1, step))


def run(comm: Communicator, sweep: Sweep) -> Iterator[Record]:
    """Yields a record for each size and contender, ours and then the peers', the same on every
    rank. The contenders of a size take turns, so that what else the machine does meets all."""
    for size in sweep.sizes:
        count = size // dtype_of(sweep.dtype).itemsize
        if sweep.op in (*_SHARDED, "all_to_all"):
            count -= count % comm.size  # equal shards
        cases = [_Case(comm, sweep, count, algorithm) for algorithm in sweep.algorithms]
        cases += [_Case(comm, sweep, count, None, peer) for peer in sweep.peers]
        wrong = [case.wrong() if sweep.check else -1 for case in cases]
        times_us = _time(comm, sweep, cases)
        for case, misses, time_us in zip(cases, wrong, times_us, strict=True):
            yield case.record(misses, time_us)


def _time(comm: Communicator, sweep: Sweep, cases: list[_Case]) -> list[float]:
    """Microseconds of a call of each case: the median over iterations of the slowest rank."""
    for case in cases:
        for _ in range(sweep.warmup):
            case.call()
    calls = [_calls_a_sample(comm, case) for case in cases]
    times_us: list[list[float]] = [[] for _ in cases]
    for _ in range(sweep.iterations):
        for case, repeat, row in zip(cases, calls, times_us, strict=True):
            comm.barrier()
            begin = time.perf_counter()
            for _ in range(repeat):
                case.call()
            row.append((time.perf_counter() - begin) * 1e6 / repeat)
    return [slowest_rank_median(comm.all_gather(np.array([row])).tolist()) for row in times_us]


def memory_bandwidth(comm: Communicator) -> float:
    """GB/s that all ranks of one host together read and write, by a += b on 32 MiB each."""
    a, b = np.zeros(8 << 20, np.float32), np.ones(8 << 20, np.float32)
    best = np.inf
    for _ in range(5):
        comm.barrier()
        begin = time.perf_counter()
        np.add(a, b, out=a)
        best = min(best, comm.all_reduce(np.array([time.perf_counter() - begin]), op="max")[0])
    return comm.size * 3 * a.nbytes / best / 1e9


def _calls_a_sample(comm: Communicator, case: _Case) -> int:
    """How many calls are timed at once, the same on every rank.

    Of one short call the clock would see the barrier before it, whose ranks do not leave together.
    """
    calls = 1
    while calls < _MOST_CALLS:
        begin = time.perf_counter()
        for _ in range(calls):
            case.call()
        seconds = np.array([time.perf_counter() - begin])
        if comm.broadcast(seconds)[0] >= _SAMPLE_SECONDS:
            break
        calls *= 2
    return calls


class _Case:
    """One operation at one size by one contender: its buffers, the call, and what must come out."""

    def __init__(
        self,
        comm: Communicator,
        sweep: Sweep,
        count: int,
        algorithm: str | None,
        peer: str | None = None,
    ) -> None:
        self.comm, self.sweep, self.count = comm, sweep, count
        self.algorithm, self.peer = algorithm, peer
        kind = dtype_of(sweep.dtype)
        self.bytes = count * kind.itemsize
        shard = count // comm.size if sweep.op in _SHARDED else count
        self.data = self._empty(shard if sweep.op == "all_gather" else count, kind)
        self.out = self.data
        if sweep.op not in _IN_PLACE:
            self.out = self._empty(shard if sweep.op == "reduce_scatter" else count, kind)
        self.call = self._call()

    def _empty(self, count: int, kind: np.dtype) -> Any:
        if self.sweep.gpu is not None:
            return gpu.empty(count, self.sweep.dtype, self.sweep.gpu)
        if self.peer is not None:  # which knows nothing of registered memory
            return np.empty(count, kind)
        return self.comm.empty(count, kind)

    def _call(self) -> Callable[[], Any]:
        comm, data, out, algo = self.comm, self.data, self.out, self.algorithm
        redop, root = self.sweep.redop, self.sweep.root
        if self.peer is not None:
            return peers.call(self.peer, comm, self.sweep.op, data, out, redop, root)
        calls: dict[str, Callable[[], Any]] = {
            "all_reduce": lambda: comm.all_reduce(data, op=redop, algo=algo),
            "reduce_scatter": lambda: comm.reduce_scatter(data, out=out, op=redop, algo=algo),
            "all_gather": lambda: comm.all_gather(data, out=out, algo=algo),
            "all_to_all": lambda: comm.all_to_all(data, out=out),
            "broadcast": lambda: comm.broadcast(data, root=root),
            "reduce": lambda: comm.reduce(data, root=root, op=redop),
            "barrier": comm.barrier,
        }
        return calls[self.sweep.op]

    def wrong(self) -> int:
        """How many elements, over all ranks, differ from what a serial loop gives."""
        comm, sweep = self.comm, self.sweep
        length = len(self.data)
        contributions = [_pattern(rank, length, sweep.dtype) for rank in range(comm.size)]
        if sweep.gpu is None:
            self.data[:] = contributions[comm.rank]
        else:
            gpu.fill(self.data, contributions[comm.rank])
        self.call()
        reduced = _serial(sweep.redop, contributions, sweep.dtype)
        if sweep.op == "all_gather":
            expected = np.concatenate(contributions)
        elif sweep.op == "all_to_all":
            expected = np.concatenate([np.split(c, comm.size)[comm.rank] for c in contributions])
        elif sweep.op == "broadcast":
            expected = contributions[sweep.root]
        elif sweep.op == "reduce_scatter":
            expected = np.split(reduced, comm.size)[comm.rank]
        elif sweep.op == "reduce" and comm.rank != sweep.root:
            return _total(comm, 0)
        else:
            expected = reduced
        result = self.out if sweep.gpu is None else gpu.values(self.out)
        return _total(comm, int(np.count_nonzero(result != expected)))

    def record(self, wrong: int, time_us: float) -> Record:
        comm, sweep = self.comm, self.sweep
        algbw, busbw = bandwidths(sweep.op, comm.size, self.bytes, time_us)
        return Record(
            op=sweep.op,
            algo=None if self.peer else self.algorithm or "auto",
            peer=self.peer,
            transport=self.peer or (comm.transport if sweep.gpu is None else "nccl"),
            dtype=sweep.dtype,
            redop=sweep.redop if sweep.op in _REDUCING else "none",
            ranks=comm.size,
            hosts=comm.hosts,
            bytes=self.bytes,
            count=self.count,
            time_us=time_us,
            algbw_gbs=algbw,
            busbw_gbs=busbw,
            wrong=wrong,
            model_us=self._model_us(),
        )

    def _model_us(self) -> float | None:
        model, op = self.sweep.model, self.sweep.op
        if model is None or self.peer or self.algorithm is None or self.algorithm == "mpi":
            return None
        return 1e6 * model.model(op, self.algorithm, self.bytes, self.sweep.dtype)


def _total(comm: Communicator, wrong: int) -> int:
    total = np.array([wrong], np.int64)
    comm.all_reduce(total)
    return int(total[0])


def _pattern(rank: int, count: int, dtype: str) -> np.ndarray:
    # Small whole numbers: every partial sum is exact in every type, in whatever order.
    return ((np.arange(count) * 7 + rank * 13) % 8).astype(dtype_of(dtype))


def _serial(redop: str, contributions: list[np.ndarray], dtype: str) -> np.ndarray:
    stacked = np.stack([part.astype(np.float64) for part in contributions])
    reduce: dict[str, Callable[..., np.ndarray]] = {
        "sum": np.sum,
        "mean": np.mean,
        "max": np.max,
        "min": np.min,
    }
    return reduce[redop](stacked, axis=0).astype(dtype_of(dtype))
