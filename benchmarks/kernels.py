"""Clip and noise against torch on the same buffers and threads, on this machine.

    python benchmarks/kernels.py --json benchmarks/baselines/kernels.jsonl

Peers are timed in turn with ours, round after round, so that a busy moment hits all of them alike;
the time is the median round. `read` is a plain sum over the same buffer: what memory gives. A row's
norm must be known before its first number may be added. So a row longer than a core's own cache
comes once from memory and once from the cache that cores share; a thread cannot do both at once,
and what it could reach is `read twice`, a plain sum that does the same. The last table holds what
is promised against what was measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from step import Probe
from torch import nn

from dpcomm.ghost import clip_linear
from dpcomm.privacy.clip import clip_sum
from dpcomm.privacy.mlp import Layer, Mlp, Records
from dpcomm.privacy.noise import add_noise_
from dpcomm.privacy.update import sgd_update_

KEY = bytes(32)
SHAPES = ((256, 4737), (4096, 4737), (256, 284161), (1024, 284161))
LONG = 1 << 18  # columns whose row of float32 fills a core's own cache, of 1 MiB
TOGETHER = 4  # of those rows, that clip_sum keeps in the shared cache
NUMBERS = 10_000_000
BATCH = 256
LOAD = round(os.getloadavg()[0], 1)


@dataclasses.dataclass(frozen=True)
class Record:
    op: str
    kernel: str  # ours by its name, or a peer's
    shape: tuple[int, ...]
    dtype: str
    threads: int
    time_us: float
    gbs: float  # of one read (clip), or one read and one write (noise)
    ns_per_number: float  # or, of a step, per record
    cores: int
    load: float  # of the machine before the run: beyond 0, others took part
    probe: float  # two threads against one: below 1.8, the cores were not ours alone
    machine: str


def median_times(kernels: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Seconds a call of each kernel, in rounds of a few calls of each.

    Between two kernels comes a pause: the workers of OpenMP, which torch's kernels use, spin for a
    while on the cores that others need. The calls of the first 50 ms after it are not timed: they
    wake workers, and a system may leave those on their waker's core for some of its ticks.
    """
    times: dict[str, list[float]] = {name: [] for name in kernels}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < 12:
        for name, kernel in kernels.items():
            time.sleep(0.02)
            settled = time.perf_counter() + 0.05
            while time.perf_counter() < settled:
                kernel()
            for _ in range(4):
                start = time.perf_counter()
                kernel()
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(rounds) for name, rounds in times.items()}


def parameters(width: int) -> list[int]:
    """The cut into an MLP's weights and biases: four parts, the weights the large ones."""
    first, third = width * 3 // 5, width // 3
    return [first, 64, third, width - first - 64 - third]


def clip_kernels(grads: torch.Tensor, threads: int) -> dict[str, Callable[[], object]]:
    parts = [part.contiguous() for part in grads.split(parameters(grads.shape[1]), dim=1)]

    def matvec() -> torch.Tensor:
        factors = (1.0 / (grads.norm(dim=1) + 1e-6)).clamp(max=1.0)
        return factors @ grads

    def per_parameter() -> list[torch.Tensor]:  # the recipe of Opacus
        norms = torch.stack([part.norm(2, dim=-1) for part in parts], dim=1).norm(2, dim=1)
        factors = (1.0 / (norms + 1e-6)).clamp(max=1.0)
        return [torch.einsum("i,i...", factors, part) for part in parts]

    def read_twice() -> None:
        for rows in grads.split(TOGETHER):
            rows.sum()
            rows.sum()

    kernels: dict[str, Callable[[], object]] = {
        "dpcomm": lambda: clip_sum(grads, 1.0, threads=threads),
        "read": grads.sum,
        "norm and matvec": matvec,
        "per-parameter norms and einsum": per_parameter,
    }
    if grads.shape[1] > LONG:
        kernels["read twice"] = read_twice
    return kernels


def noise_kernels(threads: int) -> dict[str, Callable[[], object]]:
    buffer, other = torch.zeros(NUMBERS), torch.zeros(NUMBERS)
    kernels: dict[str, Callable[[], object]] = {
        f"dpcomm {generator}": lambda g=generator: add_noise_(  # type: ignore[misc]
            buffer, 1.0, KEY, 0, generator=g, threads=threads
        )
        for generator in ("philox", "chacha20")
    }
    kernels["torch.normal_"] = other.normal_
    if threads == 1:
        generator = np.random.Generator(np.random.Philox(0))
        kernels["numpy Philox"] = lambda: generator.standard_normal(NUMBERS, dtype=np.float32)
    return kernels


def step_kernels(threads: int) -> dict[str, Callable[[], object]]:
    """One step of the MLP 40-64-32-1 on 256 records, forward pass and backward pass included."""
    x, y = torch.randn(BATCH, 40), torch.randint(0, 2, (BATCH, 1)).float()
    model = nn.Sequential(
        nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
    )
    loss, optimizer = nn.BCEWithLogitsLoss(), torch.optim.SGD(model.parameters(), lr=0.1)

    def plain() -> None:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()

    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    w1, b1, w2, b2, w3, b3 = (
        part.view_as(p)
        for part, p in zip(flat.split([p.numel() for p in model.parameters()]),
                           model.parameters(), strict=True)
    )  # fmt: skip

    @torch.no_grad()
    def private() -> None:
        a1 = torch.addmm(b1, x, w1.t()).relu_()
        a2 = torch.addmm(b2, a1, w2.t()).relu_()
        g3 = torch.addmm(b3, a2, w3.t()).sigmoid_().sub_(y)
        g2 = torch.ops.aten.threshold_backward(g3 @ w3, a2, 0)
        g1 = torch.ops.aten.threshold_backward(g2 @ w2, a1, 0)
        sums = clip_linear([x, a1, a2], [g1, g2, g3], 1.0).sums
        total = torch.cat([part.view(-1) for layer in sums for part in layer])
        sgd_update_(flat, total, lr=0.1, std=1.0, key=KEY, step=0, scale=1 / BATCH)

    chain = Mlp(
        [Layer(40, 64), Layer(64, 32), Layer(32, 1)], "binary_cross_entropy", threads=threads
    )
    records, gradient = Records(x, y[:, 0]), torch.empty_like(flat)

    def native() -> None:
        chain.clipped_sum(flat, records, 1.0, gradient)
        sgd_update_(flat, gradient, lr=0.1, std=1.0, key=KEY, step=0, scale=1 / BATCH)

    return {
        "dpcomm, a chain at once": native,
        "dpcomm, clip_linear among torch's": private,
        "torch eager, plain SGD": plain,
    }


def measure(threads: int, seconds: float) -> list[Record]:
    torch.set_num_threads(threads)
    faster = round(Probe()(), 2)
    cores, machine = len(os.sched_getaffinity(0)), platform.processor() or platform.machine()
    records = []
    for shape in SHAPES:
        grads = torch.randn(shape) / shape[1] ** 0.5
        for name, t in median_times(clip_kernels(grads, threads), seconds).items():
            gbs, ns = grads.nbytes / t / 1e9, t / grads.numel() * 1e9
            records.append(Record("clip_sum", name, shape, "float32", threads, t * 1e6, gbs, ns,
                                  cores, LOAD, faster, machine))  # fmt: skip
    for name, t in median_times(noise_kernels(threads), seconds).items():
        gbs, ns = 8 * NUMBERS / t / 1e9, t / NUMBERS * 1e9
        records.append(Record("add_noise", name, (NUMBERS,), "float32", threads, t * 1e6, gbs, ns,
                              cores, LOAD, faster, machine))  # fmt: skip
    for name, t in median_times(step_kernels(threads), seconds).items():
        ns = t / BATCH * 1e9
        records.append(Record("step", name, (BATCH, 40), "float32", threads, t * 1e6, 0.0, ns,
                              cores, LOAD, faster, machine))  # fmt: skip
    return records


def line(record: Record) -> str:
    shape = " x ".join(map(str, record.shape))
    return (
        f"{record.op:10}{shape:>14}{record.threads:>3}  {record.kernel:32}"
        f"{record.time_us:>10.0f} us{record.gbs:>8.1f} GB/s{record.ns_per_number:>8.3f} ns"
    )


def promises(records: list[Record]) -> list[tuple[str, float, float]]:
    """What is promised, what was measured and at least wanted."""
    times = {(r.op, r.shape, r.threads, r.kernel): r.time_us for r in records}
    found = []
    for shape in SHAPES:
        for threads in sorted({r.threads for r in records}):
            of = {k: t for (op, s, n, k), t in times.items()
                  if (op, s, n) == ("clip_sum", shape, threads)}  # fmt: skip
            name = f"clip_sum {shape[0]} x {shape[1]}, {threads} thread(s)"
            if shape != (256, 4737):
                found.append((f"{name}: of a plain read", of["read"] / of["dpcomm"], 0.75))
            if "read twice" in of:
                found.append((f"{name}: of a read twice", of["read twice"] / of["dpcomm"], 0.9))
            for peer in ("norm and matvec", "per-parameter norms and einsum"):
                wanted = 1.5 if threads == 1 else 2.0
                found.append((f"{name}: times {peer}", of[peer] / of["dpcomm"], wanted))
    one = {r.kernel: r.time_us for r in records if (r.op, r.threads) == ("add_noise", 1)}
    two = {r.kernel: r.time_us for r in records if (r.op, r.threads) == ("add_noise", 2)}
    for generator, wanted in (("philox", 3.5), ("chacha20", 2.8)):
        ours = f"dpcomm {generator}"
        if one:
            ratio = one["torch.normal_"] / one[ours]
            found.append((f"noise by {generator}, 1 thread: times torch.normal_", ratio, wanted))
        if one and two:
            ratio = one[ours] / two[ours]
            found.append((f"noise by {generator}, 2 threads: times one", ratio, 1.8))
    for threads in sorted({r.threads for r in records}):
        chain, linear, plain = (
            r.time_us for r in records if (r.op, r.threads) == ("step", threads)
        )
        name = f"{threads} thread(s): times torch's plain step, clip, noise and SGD"
        found.append((f"{name} of a chain at once", plain / chain, 2.0))
        found.append((f"{name} by clip_linear", plain / linear, 1.0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="records, one JSON object a line")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each comparison")
    args = parser.parse_args()
    records = [record for threads in args.threads for record in measure(threads, args.seconds)]
    for record in records:
        print(line(record))
    print(f"\nprobe {records[0].probe}, load {LOAD}")
    for name, ratio, wanted in promises(records):
        verdict = "holds" if ratio >= wanted else "MISSED"
        print(f"{name:76}{ratio:>6.2f}  wanted {wanted:<5} {verdict}")
    if args.json:
        with open(args.json, "w") as file:
            for record in records:
                file.write(json.dumps(dataclasses.asdict(record)) + "\n")


if __name__ == "__main__":
    main()
