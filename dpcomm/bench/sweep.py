"""Measures a collective over a range of sizes, and checks every result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpcomm.bench.record import Record, bandwidths, slowest_rank_median

if TYPE_CHECKING:
    from dpcomm.comm import Communicator

# The operations whose buffers are cut into one shard a rank, of which one goes in or comes out.
_SHARDED = ("reduce_scatter", "all_gather")

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
    iterations: int = 20
    warmup: int = 5
    check: bool = True
    root: int = 0


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
    """Yields a record for each size and algorithm, the same on every rank."""
    for size in sweep.sizes:
        for algorithm in sweep.algorithms:
            yield _measure(comm, sweep, size, algorithm)


def _measure(comm: Communicator, sweep: Sweep, size: int, algorithm: str | None) -> Record:
    count = size // np.dtype(sweep.dtype).itemsize
    if sweep.op in _SHARDED:
        count -= count % comm.size  # equal shards
    case = _Case(comm, sweep, count, algorithm)

    wrong = case.wrong() if sweep.check else -1
    for _ in range(sweep.warmup):
        case.call()
    calls = _calls_a_sample(comm, case)
    times_us = []
    for _ in range(sweep.iterations):
        comm.barrier()
        begin = time.perf_counter()
        for _ in range(calls):
            case.call()
        times_us.append((time.perf_counter() - begin) * 1e6 / calls)

    everyone = comm.all_gather(np.array([times_us]))
    time_us = slowest_rank_median(everyone.tolist())
    algbw, busbw = bandwidths(sweep.op, comm.size, case.bytes, time_us)
    return Record(
        op=sweep.op,
        algo=algorithm or "auto",
        transport=comm.transport,
        dtype=sweep.dtype,
        redop=sweep.redop if sweep.op in ("all_reduce", "reduce_scatter", "reduce") else "none",
        ranks=comm.size,
        hosts=comm.hosts,
        bytes=case.bytes,
        count=count,
        time_us=time_us,
        algbw_gbs=algbw,
        busbw_gbs=busbw,
        wrong=wrong,
    )


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
    """One operation at one size: its buffers, the call, and what must come out of it."""

    def __init__(self, comm: Communicator, sweep: Sweep, count: int, algorithm: str | None) -> None:
        self.comm, self.sweep, self.count, self.algorithm = comm, sweep, count, algorithm
        self.bytes = count * np.dtype(sweep.dtype).itemsize
        shard = count // comm.size if sweep.op in _SHARDED else count
        given = shard if sweep.op == "all_gather" else count
        taken = shard if sweep.op == "reduce_scatter" else count
        self.data = comm.empty(given, sweep.dtype)
        self.out = comm.empty(taken, sweep.dtype) if sweep.op in _SHARDED else self.data
        self.call = self._call()

    def _call(self) -> Callable[[], Any]:
        comm, data, out, algo = self.comm, self.data, self.out, self.algorithm
        redop, root = self.sweep.redop, self.sweep.root
        calls: dict[str, Callable[[], Any]] = {
            "all_reduce": lambda: comm.all_reduce(data, op=redop, algo=algo),
            "reduce_scatter": lambda: comm.reduce_scatter(data, out=out, op=redop, algo=algo),
            "all_gather": lambda: comm.all_gather(data, out=out, algo=algo),
            "broadcast": lambda: comm.broadcast(data, root=root),
            "reduce": lambda: comm.reduce(data, root=root, op=redop),
        }
        return calls[self.sweep.op]

    def wrong(self) -> int:
        """How many elements, over all ranks, differ from what a serial loop gives."""
        comm, sweep = self.comm, self.sweep
        contributions = [_pattern(rank, self.data.size, sweep.dtype) for rank in range(comm.size)]
        self.data[:] = contributions[comm.rank]
        self.call()
        reduced = _serial(sweep.redop, contributions, sweep.dtype)
        if sweep.op == "all_gather":
            expected = np.concatenate(contributions)
        elif sweep.op == "broadcast":
            expected = contributions[sweep.root]
        elif sweep.op == "reduce_scatter":
            expected = np.split(reduced, comm.size)[comm.rank]
        elif sweep.op == "reduce" and comm.rank != sweep.root:
            return _total(comm, 0)
        else:
            expected = reduced
        return _total(comm, int(np.count_nonzero(self.out != expected)))


def _total(comm: Communicator, wrong: int) -> int:
    total = np.array([wrong], np.int64)
    comm.all_reduce(total)
    return int(total[0])


def _pattern(rank: int, count: int, dtype: str) -> np.ndarray:
    # Small whole numbers: every partial sum is exact in every type, in whatever order.
    return ((np.arange(count) * 7 + rank * 13) % 8).astype(dtype)


def _serial(redop: str, contributions: list[np.ndarray], dtype: str) -> np.ndarray:
    stacked = np.stack([part.astype(np.float64) for part in contributions])
    reduce: dict[str, Callable[..., np.ndarray]] = {
        "sum": np.sum,
        "mean": np.mean,
        "max": np.max,
        "min": np.min,
    }
    return reduce[redop](stacked, axis=0).astype(dtype)
