"""All-reduce beside its peers: float32 sum in place, interleaved, pinned alike.

    python benchmarks/collectives.py openmpi=PREFIX mpich=PREFIX intel=PREFIX

Each PREFIX is a virtual environment of its own with that MPI in it (their wheels overwrite each
other); torch's Gloo is measured where this environment has torch. Every rank is pinned to core RANK
modulo cores, writes its buffer anew before each call, and a time is the median, over calls, of the
slowest rank. The contenders take turns, `--rounds` times, and the best median of each counts.

The cores of a shared machine move. Before and after each turn the cache hop between the two is
probed; a turn in which it changed, or in which both were threads of one core, counts only where a
contender has no other. What the memory itself can do is measured in the same run: two processes,
`a = b = a + b`.

Prints our time over the best peer's and appends a record a cell to
benchmarks/baselines/collectives.jsonl. `--ranks 2`, then `--ranks 4 8`, split a run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZES = (8, 1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 26)
CORES = os.cpu_count() or 1
ONE_CORE_NS = 15.0  # a hop that never leaves a core: both are its threads
STEADY = 1.5  # the hop after a turn over the one before, or the reverse, at most
OURS = ("registered", "private")

# glibc returns large blocks at once, and every call would fault its pages in anew.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
OPENMPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
}


@dataclass(frozen=True)
class Contender:
    """One program, under one launcher with one set of settings."""

    name: str
    mpirun: Path
    program: list[str]
    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    crowded: dict[str, str] = field(default_factory=dict)  # where ranks outnumber cores


@dataclass(frozen=True)
class Record:
    op: str
    contender: str
    ranks: int
    bytes: int
    time_us: float
    hop_before_ns: float
    hop_after_ns: float
    steady: bool
    load: float
    when: str


def contenders(peers: dict[str, Path], folder: Path) -> Iterator[Contender]:
    mpirun = Path(sys.executable).parent / "mpirun"
    ours = [sys.executable, str(HERE / "peers" / "ours.py"), "sums"]
    mpich_crowded = {"MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1"}
    yield Contender("ours", mpirun, [*ours, *OURS], environment=OPENMPI)
    if importlib.util.find_spec("torch"):
        yield Contender("gloo", mpirun, [*ours, "gloo"], environment=OPENMPI)
    for name, prefix in peers.items():
        binary = folder / name
        variables = {"I_MPI_ROOT": str(prefix), "PATH": f"{prefix}/bin:{os.environ['PATH']}"}
        source = str(HERE / "peers" / "mpi_allreduce.c")
        compiler = [f"{prefix}/bin/mpicc", "-O2", source, "-o", str(binary)]
        subprocess.run(compiler, env={**os.environ, **variables}, check=True)
        start, program = prefix / "bin" / "mpirun", [str(binary)]
        version = subprocess.run(
            [start, "--version"],
            env={**os.environ, **variables, **OPENMPI},
            capture_output=True,
            text=True,
        ).stdout
        if "Open MPI" in version:
            variables |= OPENMPI
            keep = variables | KEEP_MEMORY
            yield Contender(name, start, program, environment=variables)
            yield Contender(f"{name}-keep", start, program, environment=keep)
            yield Contender(f"{name}-ucx", start, program, ["--mca", "pml", "ucx"], keep)
        elif "Intel" in version:
            variables |= {
                **KEEP_MEMORY,
                "I_MPI_FABRICS": "shm",
                "I_MPI_PIN": "0",
                "LD_LIBRARY_PATH": f"{prefix}/lib",
            }
            yield Contender(name, start, program, [], variables, {"I_MPI_THREAD_YIELD": "2"})
        else:
            yield Contender(name, start, program, [], variables | KEEP_MEMORY, mpich_crowded)


def launch(contender: Contender, ranks: int, arguments: list[str]) -> str:
    """What rank 0 prints."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            **contender.environment,
            **(contender.crowded if ranks > CORES else {}),
            "PYTHONPATH": str(HERE.parent),
            "DPCOMM_BENCH_STORE": f"{folder}/store",
        }
        launcher = [contender.mpirun, *contender.options, "-np", str(ranks)]
        done = subprocess.run(
            [*launcher, *contender.program, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    if done.returncode != 0:
        raise RuntimeError(f"{contender.name}, {ranks} ranks:\n{done.stdout}{done.stderr}")
    return done.stdout


class Memory:
    """The probes of benchmarks/peers/memory.cpp."""

    def __init__(self, folder: Path) -> None:
        self._binary = folder / "memory"
        flags = ["-std=c++20", "-O3", "-march=native", "-pthread", str(HERE / "peers/memory.cpp")]
        subprocess.run(["g++", *flags, "-o", str(self._binary)], check=True)

    def _run(self, *arguments: str) -> float:
        done = subprocess.run(
            [self._binary, *arguments], capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    def hop(self) -> float:
        """Nanoseconds; 0 where there is one core."""
        return self._run("hop") if CORES > 1 else 0.0

    def limit(self, size: int) -> float:
        """Seconds of `a = b = a + b` by two processes."""
        return self._run("limit", str(size))


def turn(contender: Contender, ranks: int, budget: float, memory: Memory) -> list[Record]:
    before = memory.hop()
    output = launch(contender, ranks, [str(budget), *map(str, SIZES)])
    after = memory.hop()
    low, high = sorted((before, after))
    records = []
    for line in output.splitlines():
        *kind, size, seconds = line.split()
        records.append(
            Record(
                op="all_reduce",
                contender=kind[0] if kind else contender.name,
                ranks=ranks,
                bytes=int(size),
                time_us=round(float(seconds) * 1e6, 3),
                hop_before_ns=before,
                hop_after_ns=after,
                steady=low > ONE_CORE_NS and high < STEADY * low,
                load=round(os.getloadavg()[0], 2),
                when=time.strftime("%Y-%m-%d"),
            )
        )
    return records


def best(records: list[Record], name: str, size: int) -> Record:
    """The fastest turn of a contender, of those in which the cores stayed where they were."""
    of_cell = [r for r in records if (r.contender, r.bytes) == (name, size)]
    return min([r for r in of_cell if r.steady] or of_cell, key=lambda r: r.time_us)


def show(ranks: int, cells: dict[tuple[str, int], Record]) -> None:
    names = list(dict.fromkeys(name for name, _ in cells))
    peers = [name for name in names if name not in OURS]
    print(f"\n{ranks} ranks, µs" + "".join(f"{name:>13}" for name in names), end="")
    print("   times the best peer: registered, private" if peers else "")
    for size in SIZES:
        columns = "".join(
            f"{cells[name, size].time_us:12.2f}{' ' if cells[name, size].steady else '*'}"
            for name in names
        )
        ratios = ""
        if peers:
            peer = min(cells[name, size].time_us for name in peers)
            ratios = "".join(f"{cells[kind, size].time_us / peer:10.3f}" for kind in OURS)
        print(f"{size:12d} {columns}{ratios}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("peers", nargs="*", metavar="NAME=PREFIX", help="environments of MPIs")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.25, help="seconds a cell and round")
    parser.add_argument("--output", type=Path, default=HERE / "baselines" / "collectives.jsonl")
    args = parser.parse_args()
    given = {name: Path(prefix) for name, prefix in (peer.split("=", 1) for peer in args.peers)}

    with tempfile.TemporaryDirectory() as folder, args.output.open("a") as file:
        memory = Memory(Path(folder))
        entrants = list(contenders(given, Path(folder)))
        for ranks in args.ranks:
            records: list[Record] = []
            limits = [memory.limit(SIZES[-1]) for _ in range(args.rounds if ranks == 2 else 0)]
            for _ in range(args.rounds):
                for entrant in list(entrants):
                    try:
                        records += turn(entrant, ranks, args.budget, memory)
                    except (RuntimeError, subprocess.TimeoutExpired) as error:
                        if entrant.name == "ours":
                            raise
                        entrants.remove(entrant)
                        print(f"left out from here on: {error}", file=sys.stderr)
            names = dict.fromkeys(r.contender for r in records)
            cells = {(name, size): best(records, name, size) for name in names for size in SIZES}
            show(ranks, cells)
            for record in cells.values():
                file.write(json.dumps(asdict(record)) + "\n")
            if limits:
                extra = beside(entrants[0], memory, min(limits), cells["registered", SIZES[-1]])
                file.write(json.dumps(extra) + "\n")


def beside(ours: Contender, memory: Memory, limit: float, registered: Record) -> dict[str, object]:
    """What else must hold: the share of the memory's limit, Python's part, and idle ranks."""
    limit = min(limit, memory.limit(registered.bytes))
    program = ours.program[:2]

    def ask(ranks: int, *words: str) -> float:
        return float(launch(Contender("ours", ours.mpirun, program), ranks, list(words)))

    share = limit * 1e6 / registered.time_us
    python = ask(2, "python", "0.5")
    idle = ask(8, "idle", "5")
    print(f"\na = b = a + b of {registered.bytes} bytes by two processes: {limit * 1e6:.0f} µs, ")
    print(f"which registered buffers reach to {share:.0%}")
    print(f"Python adds {python * 1e6:.2f} µs to an all_reduce of 8 bytes")
    print(f"8 ranks, 7 of them waiting: {idle:.1%} of a core", flush=True)
    return {
        "op": "all_reduce",
        "limit_us": round(limit * 1e6, 1),
        "share_of_limit": round(share, 3),
        "python_adds_us": round(python * 1e6, 3),
        "idle_cores_of_7_ranks": round(idle, 4),
        "load": round(os.getloadavg()[0], 2),
        "when": registered.when,
    }


if __name__ == "__main__":
    main()
