"""DistributedDataParallel on dpcomm beside Gloo: the same models, ranks and steps, interleaved.

    python benchmarks/ddp.py --output benchmarks/baselines/ddp.jsonl

First 50 steps on either backend, whose parameters must agree to float32's rounding; then blocks of
steps in turn, with a model that communicates nothing as the floor. A step's time is the slowest
rank's, its median over blocks. Beside it what one bucket costs: an all-reduce of 1 KiB, by DDP's
way (an asynchronous call and its future), by a blocking call, and by the communicator itself.
Each rank computes on one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dpcomm.distributed  # noqa: F401  (torch knows the backend, also where dpcomm is in place)

MODELS = {"small": (40, 64, 32, 1), "wide": (40, 512, 512, 1)}
COMPARED_STEPS, RATE, BUCKET = 50, 0.1, 256  # the last in float32

Step = Callable[[], object]


@dataclass(frozen=True)
class Record:
    what: str  # a step of a model, or "bucket"
    side: str
    batch: int  # over all ranks; 0 for a bucket
    ranks: int
    time_us: float
    times_gloo: float  # Gloo's time over this one
    difference: float  # of the parameters from Gloo's after 50 steps, relative to their norm
    cores: int
    load: float
    torch: str


def network(sizes: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    parts = [p for a, b in itertools.pairwise(sizes) for p in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*parts[:-1])


def stepper(model: nn.Module, batch: int, ranks: int) -> Step:
    generator = torch.Generator().manual_seed(dist.get_rank())
    x = torch.randn(batch // ranks, 40, generator=generator)
    t = (x.sum(1, keepdim=True) > 0).float()
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    loss = nn.BCEWithLogitsLoss()

    def step() -> None:
        optimizer.zero_grad()
        loss(model(x), t).backward()
        optimizer.step()

    return step


def slowest(group: dist.ProcessGroup, steps: dict[str, Step], blocks: int, count: int) -> dict:
    """Seconds of a step of each side: the slowest rank's, the median over blocks."""
    times: dict[str, list[float]] = {side: [] for side in steps}
    for _ in range(blocks):
        for side, step in steps.items():
            step()
            group.comm.barrier()
            begin = time.perf_counter()
            for _ in range(count):
                step()
            times[side].append((time.perf_counter() - begin) / count)
    every = group.comm.all_gather(torch.tensor(list(times.values()), dtype=torch.float64)[None])
    medians = every.amax(0).median(1).values
    return dict(zip(times, medians.tolist(), strict=True))


def compare(groups: dict[str, dist.ProcessGroup], sizes: tuple[int, ...], batch: int, options):
    """The steps of each side, and how far apart their parameters are after 50."""
    models, steps = {}, {}
    for side, group in groups.items():
        models[side] = DistributedDataParallel(network(sizes), process_group=group)
        steps[side] = stepper(models[side], batch, group.size())
        for _ in range(COMPARED_STEPS):
            steps[side]()
    flat = {
        side: nn.utils.parameters_to_vector(model.parameters()).detach()
        for side, model in models.items()
    }
    difference = float((flat["dpcomm"] - flat["gloo"]).norm() / flat["gloo"].norm())
    assert difference < 1e-6, f"parameters differ by {difference}"
    steps["no communication"] = stepper(network(sizes), batch, options.ranks)
    return steps, difference


def bucket_steps(groups: dict[str, dist.ProcessGroup]) -> dict[str, Step]:
    data = torch.zeros(BUCKET)

    def through_future(group: dist.ProcessGroup) -> Step:
        return lambda: group.allreduce([data]).get_future().wait()

    def blocking(group: dist.ProcessGroup) -> Step:
        return lambda: dist.all_reduce(data, group=group)

    ways = {"": through_future, " blocking": blocking}
    made = {side + way: make(group) for side, group in groups.items() for way, make in ways.items()}
    comm = groups["dpcomm"].comm
    return {**made, "communicator": lambda: comm.all_reduce(data)}


def worker(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("dpcomm")
    groups = {"dpcomm": dist.group.WORLD, "gloo": dist.new_group(backend="gloo")}
    rank = dist.get_rank()

    def report(what: str, batch: int, times: dict[str, float], difference: float) -> None:
        if rank != 0:
            return
        for side, seconds in times.items():
            record = Record(
                what=what,
                side=side,
                batch=batch,
                ranks=options.ranks,
                time_us=round(seconds * 1e6, 2),
                times_gloo=round(times["gloo"] / seconds, 2),
                difference=difference,
                cores=len(os.sched_getaffinity(0)),
                load=round(os.getloadavg()[0], 1),
                torch=torch.__version__,
            )
            row = f"{what:<8}{side:<18}{batch:>6}{record.time_us:>12}{record.times_gloo:>9}"
            print(f"{row}{difference:>12.1e}", flush=True)
            if options.output:
                with options.output.open("a") as file:
                    file.write(json.dumps(asdict(record)) + "\n")

    if rank == 0:
        print(f"# {options.ranks} ranks of one thread, torch {torch.__version__}")
        print(
            f"{'what':<8}{'side':<18}{'batch':>6}{'time (us)':>12}{'x gloo':>9}{'difference':>12}"
        )
    for model in options.models:
        for batch in options.batches:
            steps, difference = compare(groups, MODELS[model], batch, options)
            report(model, batch, slowest(groups["dpcomm"], steps, options.blocks, 50), difference)
    report("bucket", 0, slowest(groups["dpcomm"], bucket_steps(groups), options.blocks, 200), 0.0)
    dist.barrier(groups["gloo"])  # torch can hang where Gloo ends with a tensor of Python in hand
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[256, 4096], help="over all ranks"
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--output", type=Path, help="append the records here, a JSON object a line")
    options = parser.parse_args()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        worker(options)
        return
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", str(options.ranks), *sys.argv]
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    sys.exit(subprocess.run(command, env=environment).returncode)


if __name__ == "__main__":
    main()
