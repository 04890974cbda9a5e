"""One training step, private and not, beside its peers: one process, the same model and records.

    python benchmarks/step.py --output benchmarks/baselines/step.jsonl

Each side samples its batch, gathers it, and updates the parameters. Blocks of steps of all sides
take turns; a step's time is the median over blocks of a block's median, and beside it the best.
Two cores of a virtual machine may share one physical core, for seconds at a time: a block before
and after which two threads together were not at least `--probe` times as fast as one is dropped.
Peers that are not installed are left out, and named.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from dpcomm import arrays
from dpcomm.privacy.mlp import Layer, Mlp, Records
from dpcomm.privacy.noise import add_noise_, new_key
from dpcomm.privacy.sampling import poisson_sample

RECORDS = 1 << 18
MODELS = {"small": (40, 64, 32, 1), "wide": (40, 512, 512, 1)}
CLIP_NORM, NOISE_MULTIPLIER, RATE = 1.0, 1.1, 0.1

Step = Callable[[], Any]


@dataclass(frozen=True)
class Record:
    side: str
    model: str
    batch: int
    threads: int
    step_us: float
    best_us: float  # a block's 10th percentile, the least over blocks: undisturbed by neighbours
    times_eager: float  # plain torch's best_us over this one
    blocks: int  # that were kept
    dropped: int  # for sharing a core
    probe: float  # two threads against one, the median over the blocks kept
    torch: str
    malloc: str


class Data:
    """Records [N, 41], the label last, as they lie in a mapped shard."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.rows = rng.standard_normal((RECORDS, 41), np.float32)
        self.rows[:, -1] = self.rows[:, :-1] @ rng.standard_normal(40) > 0
        self.tensor = torch.from_numpy(self.rows)
        self.native = Records(self.rows[:, :-1], self.rows[:, -1])

    def gather(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A uniform sample, by the cheapest means torch has."""
        rows = self.tensor[torch.randint(RECORDS, (batch,))]
        return rows[:, :-1], rows[:, -1:]


def network(sizes: tuple[int, ...]) -> nn.Sequential:
    torch.manual_seed(0)
    pairs = list(itertools.pairwise(sizes))
    parts = [part for a, b in pairs for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*parts[:-1])


def eager(sizes: tuple[int, ...], batch: int, data: Data) -> Step:
    model, loss = network(sizes), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.SGD(model.parameters(), RATE)

    def step() -> None:
        x, t = data.gather(batch)
        optimizer.zero_grad()
        loss(model(x), t).backward()
        optimizer.step()

    return step


def compiled(sizes: tuple[int, ...], batch: int, data: Data) -> Step:
    model, loss = network(sizes), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.SGD(model.parameters(), RATE)

    @torch.compile
    def train(x: torch.Tensor, t: torch.Tensor) -> None:
        loss(model(x), t).backward()
        optimizer.step()
        optimizer.zero_grad()

    return lambda: train(*data.gather(batch))


def native(sizes: tuple[int, ...], batch: int, data: Data, threads: int, private: bool) -> Step:
    shapes = list(itertools.pairwise(sizes))
    layers = [Layer(a, b, "relu" if b != sizes[-1] else "none") for a, b in shapes]
    mlp = Mlp(layers, "binary_cross_entropy", threads=threads)
    flat = nn.utils.parameters_to_vector(network(sizes).parameters()).detach().clone()
    total = torch.empty_like(flat)
    parameters, into = arrays.describe(flat), arrays.describe(total)
    key, count, records = new_key(), [0], data.native

    def step() -> None:
        count[0] += 1
        ids = poisson_sample(key, count[0], batch / RECORDS, 0, RECORDS)
        if private:
            mlp.clipped_sum(parameters, records, CLIP_NORM, into, ids=ids)
            add_noise_(total, CLIP_NORM * NOISE_MULTIPLIER, key, count[0])
        else:
            mlp.gradient_sum(parameters, records, into, ids=ids)
        flat.add_(total, alpha=-RATE / batch)

    return step


def opacus(sizes: tuple[int, ...], batch: int, data: Data, ghost: bool) -> Step:
    from opacus import optimizers
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    loss: Any = nn.BCEWithLogitsLoss()
    plain = torch.optim.SGD((model := network(sizes)).parameters(), RATE)
    options = {
        "noise_multiplier": NOISE_MULTIPLIER,
        "max_grad_norm": CLIP_NORM,
        "expected_batch_size": batch,
    }
    wrapped: Any
    optimizer: Any
    if ghost:
        wrapped = GradSampleModuleFastGradientClipping(
            model, max_grad_norm=CLIP_NORM, use_ghost_clipping=True
        )
        optimizer = optimizers.DPOptimizerFastGradientClipping(plain, **options)
        loss = DPLossFastGradientClipping(wrapped, optimizer, loss)
    else:
        wrapped = GradSampleModule(model)
        optimizer = optimizers.DPOptimizer(plain, **options)

    def step() -> None:
        x, t = data.gather(batch)
        optimizer.zero_grad()
        loss(wrapped(x), t).backward()
        optimizer.step()

    return step


def sides(model: str, batch: int, data: Data, options: argparse.Namespace) -> dict[str, Step]:
    sizes, threads = MODELS[model], options.threads
    makers: dict[str, Callable[[], Step]] = {
        "torch eager": lambda: eager(sizes, batch, data),
        "torch.compile": lambda: compiled(sizes, batch, data),
        "native": lambda: native(sizes, batch, data, threads, private=False),
        "native private": lambda: native(sizes, batch, data, threads, private=True),
        "opacus hooks": lambda: opacus(sizes, batch, data, ghost=False),
        "opacus ghost": lambda: opacus(sizes, batch, data, ghost=True),
    }
    found = {}
    for name, make in makers.items():
        if name in options.without:
            continue
        try:
            found[name] = make()
            for _ in range(2):
                found[name]()
        except ImportError as error:
            found.pop(name, None)
            print(f"# {name} left out: {error}")
    return found


class Probe:
    """How many times as fast as one thread two are: near 2 on two cores, 1.3 on a shared one."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        x, t = rng.standard_normal((128, 64), np.float32), np.zeros(128, np.float32)
        layers = [Layer(64, 64), Layer(64, 1)]
        self._steps = []
        for _ in range(2):
            mlp = Mlp(layers, "binary_cross_entropy")
            zero = np.zeros(mlp.parameters, np.float32)
            total, records = np.empty_like(zero), Records(x, t)
            views = arrays.describe(zero), records, arrays.describe(total)
            self._steps.append((mlp, views, (zero, total)))

    def _work(self, which: int) -> None:
        mlp, (parameters, records, total), _ = self._steps[which]
        for _ in range(200):
            mlp.gradient_sum(parameters, records, total)

    def __call__(self) -> float:
        begin = time.perf_counter()
        self._work(0)
        one = time.perf_counter() - begin
        other = threading.Thread(target=self._work, args=(1,))
        begin = time.perf_counter()
        other.start()
        self._work(0)
        other.join()
        return 2 * one / (time.perf_counter() - begin)


def block(step: Step, seconds: float) -> tuple[float, float]:
    """Median and 10th percentile of a step's µs, over `seconds` of steps after one to warm up."""
    step()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or times[-1] < end:
        if not times:
            times.append(time.perf_counter())
        step()
        times.append(time.perf_counter())
    microseconds = np.diff(times) * 1e6
    return float(np.median(microseconds)), float(np.percentile(microseconds, 10))


def measure(model: str, batch: int, data: Data, options: argparse.Namespace) -> list[Record]:
    steps = sides(model, batch, data, options)
    probe = Probe()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    probes: list[float] = []
    dropped = 0
    for _ in range(options.blocks):
        before = probe()
        taken = {name: block(step, options.seconds) for name, step in steps.items()}
        ratio = min(before, probe())
        if ratio < options.probe:
            dropped += 1
            continue
        probes.append(ratio)
        for name, value in taken.items():
            times[name].append(value)
    if not probes:
        print(
            f"# {model} at {batch}: all {dropped} blocks shared a core; lower --probe to see them"
        )
        return []
    medians = {name: statistics.median(m for m, _ in pairs) for name, pairs in times.items()}
    best = {name: min(b for _, b in pairs) for name, pairs in times.items()}
    malloc = {k: v for k, v in os.environ.items() if "MALLOC" in k or k == "LD_PRELOAD"}
    return [
        Record(
            side=name,
            model="-".join(map(str, MODELS[model])),
            batch=batch,
            threads=options.threads,
            step_us=round(value, 2),
            best_us=round(best[name], 2),
            times_eager=round(best["torch eager"] / best[name], 3),
            blocks=len(probes),
            dropped=dropped,
            probe=round(statistics.median(probes), 2),
            torch=torch.__version__,
            malloc=json.dumps(malloc),
        )
        for name, value in medians.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=[256, 4096])
    parser.add_argument("--without", nargs="+", default=[], help="sides to leave out")
    parser.add_argument("--threads", type=int, default=2, help="of every side")
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.1, help="of one side in one block")
    parser.add_argument("--probe", type=float, default=1.5, help="0 keeps every block")
    parser.add_argument("--output", help="append the records to this file, a JSON object a line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = Data()
    print(f"{'side':<16}{'model':<14}{'batch':>6}{'step (us)':>12}{'best':>12}{'x eager':>9}")
    for model in options.models:
        for batch in options.batches:
            records = measure(model, batch, data, options)
            for r in records:
                row = f"{r.side:<16}{r.model:<14}{r.batch:>6}{r.step_us:>12}{r.best_us:>12}"
                print(f"{row}{r.times_eager:>9}", flush=True)
                if options.output:
                    with open(options.output, "a") as file:
                        file.write(json.dumps(asdict(r)) + "\n")
            if records:
                print(f"# {r.blocks} blocks kept at probe {r.probe}, {r.dropped} dropped")


if __name__ == "__main__":
    main()
