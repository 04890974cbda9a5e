"""Which algorithm is the fastest here, by a model that is fitted and then corrected by measurement.

The model is Hockney's with a term for additions (Thakur, Rabenseifner and Gropp, "Optimization of
collective communication operations in MPICH", IJHPCA 19 (2005)): a schedule of m messages, b bytes
moved and a bytes added on its critical path takes m·α + b·β + a·γ. The schedules say m, b and a; γ
is measured for each data type, α and β are fitted to timings of the algorithms themselves. Between
the sizes that were timed the ratio of timing to model is interpolated, so that a table for every
size and type comes of few measurements.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import dpcomm
from dpcomm import _core, arrays
from dpcomm.comm import shared_bytes

if TYPE_CHECKING:
    from dpcomm.comm import Communicator

OPERATIONS = ("all_reduce", "reduce_scatter", "all_gather")

# Float32 sums of these sizes are timed: short, where messages count; middle, where every model
# errs; long, where bytes do.
_SIZES = (8, 2 << 10, 32 << 10, 256 << 10, 2 << 20)
_BUDGET = 1.5  # seconds of timing, shared by operations, algorithms and sizes
_SAMPLE = 5e-4  # seconds of one sample
_WORTH = 0.9  # of the time of the untuned choice: what is hardly faster does not replace it
_HOPELESS = 4.0  # times the best estimate: not timed
_LADDER = tuple(1 << power for power in range(2, 31))  # bytes that the table is made for


@dataclass(frozen=True)
class Timing:
    """One algorithm at one size: seconds as measured, the median of the slowest rank."""

    operation: str
    algorithm: str
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Tuning:
    """What was found for one host, transport and rank count."""

    version: str
    host: str
    transport: str
    ranks: int
    hosts: tuple[int, ...]
    deterministic: bool
    alpha: float  # seconds a message
    beta: float  # seconds a byte moved
    gamma: dict[str, float]  # seconds a byte added, by data type
    timings: tuple[Timing, ...]
    refused: tuple[str, ...]  # algorithms that gave a wrong result here
    untuned: dict[str, tuple[str, ...]]  # by operation, for each size of the table

    def model(self, operation: str, algorithm: str, size: int, dtype: str = "float32") -> float:
        """Seconds by the model alone, for a buffer of `size` bytes."""
        cost = _core.schedule_cost(
            _core.schedules(
                operation,
                algorithm,
                self.ranks,
                chunks=_core.chunks_for(algorithm, size),
                hosts=self.hosts,
            ),
            size,
        )
        return cost.seconds(self.alpha, self.beta, self.gamma[dtype])

    def estimate(self, operation: str, algorithm: str, size: int, dtype: str = "float32") -> float:
        """Seconds by the model, corrected by the timings around `size`; infinite where none is."""
        own = [t for t in self.timings if (t.operation, t.algorithm) == (operation, algorithm)]
        if not own:
            return np.inf
        ratios = [t.seconds / self.model(operation, algorithm, t.bytes) for t in own]
        places = [np.log(t.bytes) for t in own]
        correction = np.exp(np.interp(np.log(size), places, np.log(ratios)))
        return self.model(operation, algorithm, size, dtype) * float(correction)

    def choices(self, operation: str, dtype: str) -> list[tuple[int, str]]:
        """The fastest algorithm up to how many bytes, rising; empty where nothing was timed.

        The untuned choice stays where nothing is clearly faster.
        """
        algorithms = sorted({t.algorithm for t in self.timings if t.operation == operation})
        found: list[tuple[int, str]] = []
        for size in _LADDER if algorithms else ():
            times = {name: self.estimate(operation, name, size, dtype) for name in algorithms}
            best = min(times, key=times.__getitem__)
            usual = self.untuned[operation][_LADDER.index(size)]
            if times[best] > _WORTH * times.get(usual, np.inf):
                best = usual
            if found and found[-1][1] == best:
                found.pop()
            found.append((size, best))
        return found


def candidates(comm: Communicator, operation: str) -> list[str]:
    """The algorithms that may stand in for the default without loosening the order of additions."""
    if operation == "all_gather":
        return ["ring", "round_robin"]  # adds nothing
    known = _core.algorithms() if operation == "all_reduce" else ["ring", "round_robin"]
    longest = comm.core.untuned(operation, _LADDER[-1])
    strict = comm.core.deterministic or _core.adds_in_order_of_ranks(longest)
    return [name for name in known if not strict or _core.adds_in_order_of_ranks(name)]


def tune(comm: Communicator, fresh: bool = False) -> Tuning:
    """Finds the tuning of this communicator and applies it. Collective."""
    found = find(comm, fresh)
    for operation in OPERATIONS:
        # The core counts a shard where the table counts the whole buffer.
        parts = 1 if operation == "all_reduce" else comm.size
        for dtype in arrays.BYTES:
            choices = [(up_to // parts, name) for up_to, name in found.choices(operation, dtype)]
            comm.core.tune(operation, dtype, choices)
    return found


def find(comm: Communicator, fresh: bool = False) -> Tuning:
    """The tuning of this communicator, from the user's cache or, if it is not there or `fresh`, by
    measuring. Collective: rank 0 reads and writes the cache, and its word is every rank's."""
    path = cache_path(comm)
    cached = _load(path, comm) if comm.rank == 0 and not fresh else None
    found = _from_rank_0(comm, cached)
    if found is None:
        found = _from_rank_0(comm, _measure(comm))
        assert found is not None
        if comm.rank == 0:
            _save(path, found)
    return found


def cache_path(comm: Communicator) -> Path:
    """$XDG_CACHE_HOME/dpcomm/tuning/…: by host, transport and rank count."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    order = "-in-order" if comm.core.deterministic else ""
    name = f"{socket.gethostname()}-{comm.transport}-{comm.size}x{comm.hosts}{order}.json"
    return Path(root) / "dpcomm" / "tuning" / name


def explain(tuning: Tuning, operation: str, dtype: str = "float32") -> str:
    """The table of an operation, and why each line is as it is."""
    gamma = ", ".join(f"{name} {1e9 * value:.3f}" for name, value in tuning.gamma.items())
    lines = [
        f"# {operation} of {dtype} on {tuning.ranks} ranks over {tuning.transport}, {tuning.host}",
        f"# α = {1e6 * tuning.alpha:.2f} µs a message, β = {1e9 * tuning.beta:.3f} ns a byte moved",
        f"# γ in ns a byte added: {gamma}",
    ]
    lines += [f"# not used, its result was wrong: {name}" for name in tuning.refused]
    own = [t for t in tuning.timings if t.operation == operation]
    for size in sorted({t.bytes for t in own}):
        timed = sorted((t for t in own if t.bytes == size), key=lambda t: t.seconds)
        row = ", ".join(
            f"{t.algorithm} {1e6 * t.seconds:.1f} "
            f"(model {1e6 * tuning.model(operation, t.algorithm, size):.1f})"
            for t in timed
        )
        lines.append(f"# measured, float32, {size} B, µs: {row}")
    begin = 0
    for up_to, name in tuning.choices(operation, dtype):
        size = min(max(begin, 1) * 2, up_to)
        others = {t.algorithm: tuning.estimate(operation, t.algorithm, size, dtype) for t in own}
        seconds = others.pop(name)
        second, least = min(others.items(), key=lambda pair: pair[1], default=("", 0.0))
        rival = f"; next {second}, {1e6 * least:.1f}" if second else "; the only one"
        end = "any longer" if up_to == _LADDER[-1] else f"{up_to:>10}"
        lines.append(
            f"{begin:>10} to {end:>10} B  {name:<18} at {size} B: {1e6 * seconds:.1f} µs{rival}"
        )
        begin = up_to + 1
    return "\n".join(lines)


# What follows runs on every rank alike.


def _measure(comm: Communicator) -> Tuning:
    gamma = {
        name: _agreed(comm, _core.seconds_to_add(name, 64 << 10) / (64 << 10))
        for name in arrays.BYTES
    }
    names = {operation: candidates(comm, operation) for operation in OPERATIONS}
    every = [(op, name) for op in OPERATIONS for name in names[op]]
    plan = [(op, name) for op, name in every if _is_right(comm, op, name)]

    fit = Tuning(
        version=dpcomm.__version__,
        host=socket.gethostname(),
        transport=comm.transport,
        ranks=comm.size,
        hosts=tuple(comm.core.hosts),
        deterministic=comm.core.deterministic,
        alpha=1e-6,
        beta=1e-10,
        gamma=gamma,
        timings=(),
        refused=tuple(f"{op} {name}" for op, name in every if (op, name) not in plan),
        untuned={op: tuple(comm.core.untuned(op, size) for size in _LADDER) for op in OPERATIONS},
    )
    for index, size in enumerate(_SIZES):
        rivals = {}
        for op in OPERATIONS:
            guess = {name: fit.model(op, name, size) for kind, name in plan if kind == op}
            # Until α and β are fitted the model knows no hopeless ones.
            limit = _HOPELESS * min(guess.values(), default=0) if index > 1 else np.inf
            rivals.update({(op, name): size for name in guess if guess[name] <= limit})
        seconds = _time(comm, rivals)
        timings = (
            *fit.timings,
            *(Timing(op, name, size, seconds[op, name]) for op, name in rivals),
        )
        fit = _fitted(fit, timings)
    return fit


def _fitted(tuning: Tuning, timings: Sequence[Timing]) -> Tuning:
    """α and β that fit the timings best, each weighed by its own length."""
    unit = {"alpha": 0.0, "beta": 0.0, "gamma": dict.fromkeys(arrays.BYTES, 0.0)}

    def column(**one: Any) -> np.ndarray:
        parts = Tuning(**{**_fields(tuning), **unit, **one})
        return np.array([parts.model(t.operation, t.algorithm, t.bytes) for t in timings])

    measured = np.array([t.seconds for t in timings])
    messages, moved = column(alpha=1.0), column(beta=1.0)
    added = column(gamma=tuning.gamma)
    columns = np.stack([messages, moved], 1) / measured[:, None]
    rest = (measured - added) / measured
    alpha, beta = np.linalg.lstsq(columns, rest, rcond=None)[0]
    if beta <= 0:  # what no message explains
        beta, alpha = 0.0, float(np.median(rest * measured / np.maximum(messages, 1)))
    return Tuning(
        **{
            **_fields(tuning),
            "alpha": max(float(alpha), 1e-9),
            "beta": max(float(beta), 1e-13),
            "timings": tuple(timings),
        }
    )


def _fields(tuning: Tuning) -> dict[str, Any]:
    return {name: getattr(tuning, name) for name in Tuning.__dataclass_fields__}


def _arrays(comm: Communicator, operation: str, count: int) -> tuple[Any, Any]:
    """Input and output whose longer one has `count` elements, a multiple of the ranks."""
    shard = count // comm.size
    sizes = {
        "all_reduce": (count, count),
        "reduce_scatter": (count, shard),
        "all_gather": (shard, count),
    }
    given, taken = sizes[operation]
    data = comm.empty(given)
    return data, data if operation == "all_reduce" else comm.empty(taken)


def _is_right(comm: Communicator, operation: str, algorithm: str) -> bool:
    """Whether every rank gets what whole numbers add up to, in each place."""
    count = 1009 * comm.size
    data, out = _arrays(comm, operation, count)
    parts = [np.arange(data.size) % 13 + rank for rank in range(comm.size)]
    data[:] = parts[comm.rank]
    getattr(comm, operation)(data, algo=algorithm, out=out)
    expected = np.concatenate(parts) if operation == "all_gather" else np.sum(parts, axis=0)
    if operation == "reduce_scatter":
        expected = np.split(expected, comm.size)[comm.rank]
    right = np.array([int(np.array_equal(out, expected))])
    return bool(comm.all_reduce(right, op="min")[0])


def _time(comm: Communicator, rivals: dict[tuple[str, str], int]) -> dict[tuple[str, str], float]:
    """Seconds of one call of each, by operation and algorithm, for its bytes.

    The least of several samples of the slowest rank, taken in turns: what else the machine does
    only ever adds to a time.
    """
    arrays = {
        (op, name): _arrays(comm, op, max(1, size // 4 // comm.size) * comm.size)
        for (op, name), size in rivals.items()
    }
    least = dict.fromkeys(rivals, np.inf)
    calls = dict.fromkeys(rivals, 1)
    for data, _ in arrays.values():
        data[:] = 0
    until = time.perf_counter() + _BUDGET / len(_SIZES)
    samples = 0
    while samples < 3 or _agreed(comm, time.perf_counter()) < _agreed(comm, until):
        samples += 1
        for key, (data, out) in arrays.items():
            comm.barrier()
            begin = time.perf_counter()
            for _ in range(calls[key]):
                getattr(comm, key[0])(data, algo=key[1], out=out)
            took = _agreed(comm, time.perf_counter() - begin)
            least[key] = min(least[key], took / calls[key])
            if took < _SAMPLE and calls[key] < 256:
                calls[key] *= 4  # too short for the clock
    return least


def _agreed(comm: Communicator, seconds: float) -> float:
    """The slowest rank's."""
    return float(comm.all_reduce(np.array([seconds]), op="max")[0])


# The cache, and rank 0's word.


def _text(tuning: Tuning) -> str:
    return json.dumps(asdict(tuning), indent=1)


def _parse(text: str) -> Tuning:
    fields = json.loads(text)
    fields["timings"] = tuple(Timing(**timing) for timing in fields["timings"])
    fields["hosts"] = tuple(fields["hosts"])
    fields["refused"] = tuple(fields["refused"])
    return Tuning(**fields)


def _load(path: Path, comm: Communicator) -> Tuning | None:
    """What is there, if it is of this version and these hosts."""
    try:
        found = _parse(path.read_text())
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    same = (found.version, found.hosts) == (dpcomm.__version__, tuple(comm.core.hosts))
    return found if same else None


def _save(path: Path, tuning: Tuning) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(_text(tuning))
    scratch.replace(path)


def _from_rank_0(comm: Communicator, tuning: Tuning | None) -> Tuning | None:
    text = b"" if tuning is None else _text(tuning).encode()
    said = shared_bytes(comm, text)
    return _parse(said.decode()) if said else None
