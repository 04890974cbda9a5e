"""The kernels on a GPU against the memory's bandwidth and against what users run today.

Times are CUDA events around each call, the median of many; inputs rotate among buffers that
together exceed the L2 cache four times. The ceiling is the device-to-device copy of this very
machine, which reads and writes: a kernel that reads 1 GB at 90% of it moves 1 GB in the time in
which the copy moves 0.9 GB.

    python benchmarks/gpu_kernels.py --out kernels.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

import dpcomm
from dpcomm import _core

KEY = bytes(range(32))
CLIP_SHAPES = [(256, 1_000_000), (1024, 284_161), (64, 10_000_000)]
NOISE_COUNT = 100_000_000
UPDATE_COUNT = 50_000_000
# Of ChaCha20 for one of the 16 words of a block: 80 quarter rounds of 4 additions, 4 exclusive ors
# and 4 rotations, and the last addition.
CHACHA20_OPERATIONS = 80 * 12 / 16 + 1
INTEGER_LANES = 64  # a clock and multiprocessor, on compute capability 8.0 and 9.0


@dataclass(frozen=True)
class Record:
    """One measurement. `ceiling_gbs` is what `of_ceiling` is a share of, `ceiling` its name."""

    op: str
    algo: str
    dtype: str
    shape: list[int]
    bytes: int
    time_us: float
    gbs: float
    ceiling: str
    ceiling_gbs: float
    of_ceiling: float
    wanted: float  # 0 where nothing is promised
    device: str


def median_us(calls: Sequence[Callable[[], object]], repeats: int = 30) -> float:
    """The median time of one call; `calls` do the same on different buffers."""
    for call in calls:
        call()
    times = []
    for i in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        calls[i % len(calls)]()
        end.record()
        times.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) * 1e3 for begin, end in times)


def sets(size: int) -> int:
    """How many buffers of `size` bytes exceed the L2 cache four times, at least two."""
    return max(2, 4 * torch.cuda.get_device_properties(0).L2_cache_size // size + 1)


def opacus(grads: Tensor, clip_norm: float) -> Tensor:
    """What Opacus' clip_and_accumulate computes for one parameter."""
    norms = torch.stack([grads.reshape(len(grads), -1).norm(2, dim=-1)], dim=1).norm(2, dim=1)
    factors = (clip_norm / (norms + 1e-6)).clamp(max=1.0)
    return torch.einsum("i,i...", factors.to(grads.dtype), grads)


def copy_gbs() -> float:
    """Bytes read and written by torch's copy of 1 GiB, in 10^9 a second."""
    source, target = (torch.empty(1 << 28, device="cuda") for _ in range(2))
    source.normal_()
    return 2 * source.nbytes / median_us([lambda: target.copy_(source)]) / 1e3


def chacha20_gbs() -> float:
    """What the integer units allow to add_noise_ with ChaCha20: 8 bytes a number."""
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    megahertz = float(subprocess.run(query, capture_output=True, text=True).stdout.split()[0])
    operations = properties.multi_processor_count * INTEGER_LANES * megahertz * 1e6
    return operations / CHACHA20_OPERATIONS * 8 / 1e9


def measure() -> list[Record]:
    device = torch.cuda.get_device_name()
    copy = copy_gbs()
    found: list[Record] = []

    def add(op, algo, tensor, size, time_us, ceiling="copy", ceiling_gbs=copy, wanted=0.0):
        gbs = size / time_us / 1e3
        found.append(
            Record(
                op, algo, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), size,
                round(time_us, 2), round(gbs, 1), ceiling, round(ceiling_gbs, 1),
                round(gbs / ceiling_gbs, 3), wanted, device,
            )
        )  # fmt: skip

    for dtype in (torch.float32, torch.bfloat16):
        for rows, columns in CLIP_SHAPES:
            size = rows * columns * dtype.itemsize
            many = [
                torch.empty(rows, columns, dtype=dtype, device="cuda").normal_()
                for _ in range(sets(size))
            ]
            clip_norm = columns**0.5  # about the median norm: clips half of the rows
            ours = median_us([lambda g=g, c=clip_norm: dpcomm.clip_sum(g, c) for g in many])
            add("clip_sum", "dpcomm", many[0], size, ours, wanted=0.9)
            theirs = median_us([lambda g=g, c=clip_norm: opacus(g, c) for g in many], repeats=9)
            add("clip_sum", "opacus", many[0], size, theirs)
            del many
            torch.cuda.empty_cache()

    buffers = [torch.zeros(NOISE_COUNT, device="cuda") for _ in range(2)]
    size = 2 * buffers[0].nbytes

    def noise(generator):
        return [
            lambda b=b, step=step: dpcomm.add_noise_(b, 1.0, KEY, step, generator=generator)
            for step, b in enumerate(buffers)
        ]

    add("add_noise_", "philox", buffers[0], size, median_us(noise("philox")), wanted=0.9)
    chacha20 = median_us(noise("chacha20"))
    add("add_noise_", "chacha20", buffers[0], size, chacha20, wanted=0.4)
    wall = chacha20_gbs()
    add("add_noise_", "chacha20", buffers[0], size, chacha20, "integer units", wall, 0.8)
    peer = median_us([lambda b=b: b.add_(torch.randn(NOISE_COUNT, device="cuda")) for b in buffers])
    add("add_noise_", "torch.randn", buffers[0], size, peer)

    # Each number of a rank's shard is read once, and written once where it changes.
    for name, moved, update in UPDATES:
        shard = [torch.zeros(UPDATE_COUNT, device="cuda") for _ in range(4)]
        time_us = median_us([lambda u=update, s=shard: u(*s)])
        add(name, "philox", shard[0], moved * shard[0].nbytes, time_us, wanted=0.9)
    add("torch adam", "fused", shard[0], moved * shard[0].nbytes, median_us([torch_adam(*shard)]))
    return found


def sgd(gradient: Tensor, parameters: Tensor, *_: Tensor) -> None:
    dpcomm.sgd_update_(
        parameters, gradient, lr=0.1, std=1.0, key=KEY, step=1, generator="philox", scale=0.1
    )


def momentum(gradient: Tensor, parameters: Tensor, average: Tensor, _: Tensor) -> None:
    dpcomm.sgd_update_(
        parameters, gradient, average, lr=0.1, momentum=0.9, std=1.0, key=KEY, step=1,
        generator="philox", scale=0.1,
    )  # fmt: skip


def adam(gradient: Tensor, parameters: Tensor, average: Tensor, square: Tensor) -> None:
    dpcomm.adam_update_(
        parameters, gradient, average, square, count=1, std=1.0, key=KEY, step=1,
        generator="philox", scale=0.1,
    )  # fmt: skip


# Name, buffers read or written, and the call.
UPDATES = [("sgd_update_", 3, sgd), ("momentum", 5, momentum), ("adam_update_", 7, adam)]


def torch_adam(gradient: Tensor, parameters: Tensor, *_: Tensor) -> Callable[[], None]:
    """Noise, scale and step as three of torch's calls."""
    leaf = torch.nn.Parameter(parameters)
    optimizer = torch.optim.Adam([leaf], fused=True)

    def call() -> None:
        leaf.grad = torch.randn_like(gradient).add_(gradient).mul_(0.1)
        optimizer.step()

    return call


def check_updates() -> list[str]:
    """Where a step differs from the CPU's in a bit."""
    wrong = []
    for name, _, update in UPDATES:
        here = [torch.rand(1_000_003) for _ in range(4)]
        there = [tensor.cuda() for tensor in here]
        update(*here)
        update(*there)
        differ = sum(
            int((a.view(torch.int32) != b.cpu().view(torch.int32)).sum())
            for a, b in zip(here, there, strict=True)
        )
        if differ:
            wrong.append(f"{name}: {differ} numbers differ from the CPU's")
    return wrong


def check() -> list[str]:
    """What is wrong; the noise of 10^8 numbers to the bit, and the bound and value of clip_sum."""
    wrong = []
    threads = os.cpu_count() or 1
    for generator in ("philox", "chacha20"):
        here = torch.zeros(NOISE_COUNT)
        there = torch.zeros(NOISE_COUNT, device="cuda")
        noise = _core.NoiseSpec(KEY, 7, 1.5, generator)
        _core.add_noise(here.data_ptr(), NOISE_COUNT, 12345, noise, threads=threads)
        dpcomm.add_noise_(there, 1.5, KEY, 7, 12345, generator)
        differ = int((here.view(torch.int32) != there.cpu().view(torch.int32)).sum())
        if differ:
            wrong.append(f"{generator}: {differ} of {NOISE_COUNT} numbers differ from the CPU's")
    for rows, columns in [(64, 4737), (16, 284_161), (8, 1_000_000), (3, 10_000_000)]:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            grads = torch.randn(rows, columns, device="cuda").to(dtype)
            exact = grads.double().norm(dim=1)
            clip_norm = float(exact.median())
            factors = (clip_norm / exact).clamp(max=1.0)
            expected = (factors[:, None] * grads.double()).sum(dim=0)
            clipped = dpcomm.clip_sum(grads, clip_norm)
            error = float((clipped.total - expected).norm() / expected.norm())
            alone = dpcomm.clip_sum(grads[:1], clip_norm / 3).total.double().norm()
            again = dpcomm.clip_sum(grads, clip_norm).total
            where = f"clip_sum [{rows}, {columns}] {dtype}"
            if not error < 1e-6:
                wrong.append(f"{where}: relative error {error}")
            if not alone <= clip_norm / 3:
                wrong.append(f"{where}: a row adds {float(alone)}, above {clip_norm / 3}")
            if not torch.equal(clipped.total, again):
                wrong.append(f"{where}: two calls differ")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", help="file for the records, one JSON object a line")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_kernels: skipped, torch.cuda.is_available() is false")
        return 0
    torch.manual_seed(1)
    wrong = check() + check_updates()
    records = measure()
    if arguments.out:
        with open(arguments.out, "w") as file:
            file.writelines(json.dumps(asdict(record)) + "\n" for record in records)
    print(records[0].device)
    line = "{:<11} {:<11} {:<9} {:>16} {:>10} {:>9} {:>22} {:>7}"
    print(line.format("op", "algo", "dtype", "shape", "time us", "GB/s", "of", "wanted"))
    for r in records:
        share = f"{r.of_ceiling:.0%} of {r.ceiling}"
        wanted = f"{r.wanted:.0%}" if r.wanted else ""
        shape = "x".join(map(str, r.shape))
        print(line.format(r.op, r.algo, r.dtype, shape, r.time_us, r.gbs, share, wanted))
    print(*(f"WRONG: {text}" for text in wrong), sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
