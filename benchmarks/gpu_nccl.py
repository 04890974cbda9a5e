"""Two ranks over NCCL: every algorithm checked, the private step held to the CPU's, and a sweep.

Starts its ranks itself, each on a GPU of its own where there are so many; on one GPU, NCCL 2.30 or
newer lets them take turns. Exit code 77, with the reason as the last line, where it cannot run.

    python benchmarks/gpu_nccl.py --out nccl.jsonl
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import numpy as np

import dpcomm
from dpcomm import _core, launch
from dpcomm.bench import gpu, record, sweep

SKIPPED = 77
COUNTS = (1, 7, 1000, 1_000_003)
SIZES = tuple(1 << power for power in (10, 16, 20, 24, 28))
ALGORITHMS = ("nccl", "ring", "round_robin", "recursive_doubling")


def check(comm: dpcomm.Communicator, index: int) -> list[str]:
    """What is wrong on this rank."""
    import torch

    wrong = []
    for algorithm in (*_core.algorithms(), "nccl"):
        for dtype in (torch.float32, torch.bfloat16, torch.int64):
            for count in COUNTS:
                own = torch.arange(count, device=f"cuda:{index}").remainder(8).to(dtype)
                comm.all_reduce(own.add_(comm.rank), algo=algorithm)
                total = torch.arange(count).remainder(8) * comm.size + sum(range(comm.size))
                if not torch.equal(own.cpu(), total.to(dtype)):
                    wrong.append(f"{algorithm} of {count} {dtype}")
    count = 1_000_003
    sums = []
    for device in ("cpu", f"cuda:{index}"):
        step = dpcomm.PrivateStep(comm, count, 1.0, 1.1, 64.0, unsafe_seed=1)
        own = torch.arange(count, dtype=torch.float32, device=device).remainder(8)
        sums.append(step(own).cpu())
    if not torch.equal(*sums):
        wrong.append(f"private step: {int((sums[0] != sums[1]).sum())} numbers are not the CPU's")
    return wrong


def rank_main(out: str | None) -> int:
    import torch

    comm = dpcomm.init()
    index, device = gpu.choose(comm)
    wrong = check(comm, index)
    if comm.rank == 0:
        print(f"# {device}", record.heading(), sep="\n", flush=True)
    records = []
    # torch's own communicator does not let ranks share a GPU.
    peers = ("nccl",) if torch.cuda.device_count() >= comm.size else ()
    plan = sweep.Sweep("all_reduce", SIZES, algorithms=ALGORITHMS, peers=peers, gpu=index)
    for measured in sweep.run(comm, plan):
        records.append(measured)
        if comm.rank == 0:
            print(record.line(measured), flush=True)
    if comm.rank == 0 and out:
        with open(out, "w") as file:
            record.write_json(records, file)
    print(*(f"WRONG on rank {comm.rank}: {text}" for text in wrong), sep="\n", end="")
    any_wrong = np.array([len(wrong) + sum(measured.wrong for measured in records)])
    return int(comm.all_reduce(any_wrong)[0] > 0)


def skip(reason: str) -> int:
    print(f"gpu_nccl: skipped, {reason}")
    return SKIPPED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--out", help="file for the records, one JSON object a line")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        return rank_main(arguments.out)
    import torch

    if not torch.cuda.is_available():
        return skip("torch.cuda.is_available() is false")
    job = {"WORLD_SIZE": str(arguments.ranks), "MASTER_ADDR": "gpu_nccl"}
    job["MASTER_PORT"] = str(os.getpid())
    ranks = [
        subprocess.Popen(
            [sys.executable, *sys.argv],
            env={**os.environ, **job, "RANK": str(rank)},
            stderr=subprocess.PIPE if rank == 0 else None,
            text=True,
        )
        for rank in range(arguments.ranks)
    ]
    _, said = ranks[0].communicate()
    codes = [rank.wait() for rank in ranks]
    print(said, file=sys.stderr, end="")
    if launch.ENVIRONMENT in codes:
        reasons = [line for line in said.splitlines() if "share the GPU" in line]
        if reasons:
            return skip(reasons[0])
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
