"""One training step, private and not, beside its peers: the same model, records and process.

    python benchmarks/step.py --output benchmarks/baselines/step.jsonl

In one run: one process (torch eager and compiled, Opacus, torch.func, clipping by hand, ours), two
ranks on a core each against DistributedDataParallel on Gloo, a whole epoch, and peak memory, each
side in a process of its own. Then each ratio that is asked for, with its target. `--parts` takes
some of it.

Each side draws its batch, gathers it, and updates the parameters. Blocks of steps of all sides take
turns; a step's time is the median over blocks of a block's median. Two cores of a virtual machine
may share one physical core, for seconds at a time: a block before or after which two threads were
not at least `--probe` times as fast as one is dropped, and counted. Peers that are not installed
are left out, and named.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import step_sides as ways
import torch
from step_sides import MODELS, Data, Side, Step

import dpcomm
from dpcomm import arrays
from dpcomm.privacy.ledger import Ledger, Toll
from dpcomm.privacy.mlp import Layer, Mlp, Records
from dpcomm.privacy.plan import Plan

RECORDS = 1_223_992  # of the census sample that this began with
SLOW_BLOCKS = 3  # for sides whose step takes longer than a block of the others
PEERS = ("opacus hooks", "opacus ghost", "torch.func")


@dataclass(frozen=True)
class Record:
    part: str
    side: str
    model: str
    batch: int  # expected, over all ranks
    ranks: int
    threads: int  # a rank
    step_us: float
    sampler_us: float | None = None  # of step_us, timed alone; None: not apart from the rest
    loader_us: float | None = None
    communication_us: float | None = None
    compute_us: float | None = None  # what the others leave of the step
    seconds: float | None = None  # of an epoch
    peak_mb: float | None = None
    above_start_mb: float | None = None  # peak, over what imports and data hold
    blocks: int = 0  # that were kept
    dropped: int = 0  # for sharing a core
    probe: float | None = None  # two threads against one, the median over the blocks kept
    torch: str = torch.__version__
    malloc: str = json.dumps(
        {k: v for k, v in os.environ.items() if "MALLOC" in k or k == "LD_PRELOAD"}
    )


@dataclass(frozen=True)
class Check:
    """What is asked for: `value` is to be at least, or at most, the target."""

    check: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def holds(self) -> bool:
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )


Times = dict[tuple[str, str, int], float]  # (side, model, batch) -> µs


def makers(model: str, batch: int, data: Data, threads: int) -> dict[str, Callable[[], Side]]:
    return {
        "torch eager": lambda: ways.eager(model, batch, data),
        "torch.compile": lambda: ways.compiled(model, batch, data),
        "native": lambda: ways.native(model, batch, data, threads, private=False),
        "native private": lambda: ways.native(model, batch, data, threads, private=True),
        "general private": lambda: ways.general(model, batch, data),
        "by hand": lambda: ways.by_hand(model, batch, data),
        "torch.func": lambda: ways.vmap(model, batch, data),
        "opacus ghost": lambda: ways.opacus(model, batch, data, ghost=True),
        "opacus hooks": lambda: ways.opacus(model, batch, data, ghost=False),
    }


class Probe:
    """How many times as fast as one thread two are, each on a CPU of its own: near 2 on two cores,
    1.3 on a shared one. Pinned, for a system may leave a new thread on its maker's CPU for
    milliseconds, and long calls, between which the threads wait for Python's lock."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        x, t = rng.standard_normal((4096, 64), np.float32), np.zeros(4096, np.float32)
        self._cpus = sorted(os.sched_getaffinity(0))[:2]
        self._steps = []
        for _ in self._cpus:
            mlp = Mlp([Layer(64, 64), Layer(64, 1)], "binary_cross_entropy")
            zero = np.zeros(mlp.parameters, np.float32)
            total, records = np.empty_like(zero), Records(x, t)
            views = arrays.describe(zero), records, arrays.describe(total)
            self._steps.append((mlp, views, (zero, total)))

    def _seconds(self, threads: int) -> float:
        """Of as much work on each thread, the slowest's."""
        start = threading.Barrier(threads)

        def work(which: int) -> float:
            mlp, (parameters, records, total), _ = self._steps[which]
            os.sched_setaffinity(0, {self._cpus[which]})
            start.wait()
            begin = time.perf_counter()
            for _ in range(10):
                mlp.gradient_sum(parameters, records, total)
            return time.perf_counter() - begin

        with ThreadPoolExecutor(threads) as pool:
            return max(pool.map(work, range(threads)))

    def __call__(self) -> float:
        time.sleep(0.1)  # the workers of OpenMP spin for a while after a kernel of torch's
        return len(self._cpus) * self._seconds(1) / self._seconds(len(self._cpus))


def block(step: Step, seconds: float) -> float:
    """The median µs over `seconds` of steps, at least two, after one to warm up."""
    step()
    times = [time.perf_counter()]
    end = times[0] + seconds
    while len(times) < 3 or times[-1] < end:
        step()
        times.append(time.perf_counter())
    return float(np.median(np.diff(times)) * 1e6)


def in_one_process(model: str, batch: int, data: Data, options: Any) -> list[Record]:
    sides: dict[str, Side] = {}
    for name, make in makers(model, batch, data, options.threads).items():
        if name not in options.without:
            try:
                sides[name] = make()
                sides[name].step()
            except ImportError as error:
                sides.pop(name, None)
                print(f"# {name} left out: {error}")
    slow = {name for name, side in sides.items() if block(side.step, 0) > options.seconds * 1e6}
    probe, probes, dropped = Probe(), [], 0
    times: dict[tuple[str, str], list[float]] = {}
    while len(probes) < options.blocks and dropped < 3 * options.blocks:
        before = probe()
        taken: dict[tuple[str, str], float] = {}
        for name, side in sides.items():
            if name in slow and len(probes) >= SLOW_BLOCKS:
                continue
            taken[name, "step"] = block(side.step, options.seconds)
            for part, work in side.parts.items():
                taken[name, part] = block(work, options.seconds / 5)
        ratio = min(before, probe())
        if ratio < options.probe:
            dropped += 1
            continue
        probes.append(ratio)
        for key, value in taken.items():
            times.setdefault(key, []).append(value)
    if not probes:
        print(f"# {model} at {batch}: every block shared a core; lower --probe to see them")
        return []
    median = {key: statistics.median(values) for key, values in times.items()}
    made = []
    for name in sides:
        parts = {part: median.get((name, part)) for part in ("sampler", "loader", "communication")}
        step = median[name, "step"]
        made.append(
            Record(
                part="one process",
                side=name,
                model=model,
                batch=batch,
                ranks=1,
                threads=options.threads,
                step_us=step,
                **{f"{part}_us": value for part, value in parts.items()},
                compute_us=step - sum(value or 0 for value in parts.values()),
                blocks=len(times[name, "step"]),
                dropped=dropped,
                probe=statistics.median(probes),
            )
        )
    return made


def checks_of_one_process(us: Times, models: list[str], batches: list[int]) -> list[Check]:
    made = []

    def ratio(over: str, under: str, case: tuple[str, int], **target: float) -> None:
        above, below = us.get((over, *case)), us.get((under, *case))
        if above and below:
            made.append(Check(f"{case[0]} at {case[1]}: {over} / {under}", above / below, **target))

    eager = {("small", 256): 5.0, ("small", 4096): 2.0}
    ghost = {("small", 256): 20.0, ("small", 4096): 5.0}
    for case in itertools.product(models, batches):
        ratio("torch eager", "native private", case, at_least=eager.get(case, 1.0))
        ratio("opacus ghost", "native private", case, at_least=ghost.get(case, 2.0))
        ratio("native private", "native", case, at_most=1.2)
        most = 1.0 if case[0] == "small" else 1.15
        ratio("general private", "torch eager", case, at_most=most)
        for peer in PEERS:
            ratio(peer, "general private", case, at_least=1.0)
    return made


# Two ranks: this file again, as the ranks of torchrun.


def spawn(*arguments: str, ranks: int = 1) -> list[Any]:
    """What rank 0 of this file with these arguments prints: one JSON a line."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, __file__, *arguments],
            env=os.environ | (job | {"RANK": str(rank)} if ranks > 1 else {}),
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        for rank in range(ranks)
    ]
    said = running[0].communicate()[0]
    if any(codes := [process.wait() for process in running]):
        raise RuntimeError(f"{' '.join(arguments)}: ranks ended with {codes}")
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


class Rank:
    """One of the ranks that `spawn` started, on a core of its own."""

    def __init__(self, options: Any) -> None:
        self.comm, self.options = dpcomm.init(timeout=600), options
        torch.distributed.init_process_group("gloo")
        torch.set_num_threads(1)
        self.cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {self.cores[self.comm.rank % len(self.cores)]})
        self.data = Data(options.data)

    def seconds(self, step: Step | None, count: int) -> float:
        """Of `count` steps, on the slowest rank; a rank without a step waits."""
        self.comm.barrier()
        begin = time.perf_counter()
        for _ in range(count if step else 0):
            step()
        taken = np.array([time.perf_counter() - begin if step else 0.0])
        return float(self.comm.all_reduce(taken, op="max")[0])

    def measure(self, sides: dict[str, Step | None]) -> dict[str, float]:
        """µs a step of each side, by turns."""
        for step in sides.values():
            self.seconds(step, 3)
        counts = {
            name: max(2, int(self.options.seconds / (self.seconds(step, 10) / 10)))
            for name, step in sides.items()
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(self.options.blocks):
            for name, step in sides.items():
                times[name].append(self.seconds(step, counts[name]) / counts[name])
        return {name: statistics.median(values) * 1e6 for name, values in times.items()}

    def steps(self, model: str, batch: int) -> None:
        comm, data = self.comm, self.data
        flat = comm.empty(4737)
        gloo = torch.zeros(4737)
        here = comm.rank == 0
        sides = {
            "ddp gloo": ways.eager(
                model, batch // comm.size, data, torch.nn.parallel.DistributedDataParallel
            ).step,
            "native": ways.native(model, batch, data, 1, False, comm).step,
            "native private": ways.native(model, batch, data, 1, True, comm).step,
            "native private, one rank": (
                ways.native(model, batch, data, 1, True).step if here else None
            ),
            "ddp gloo, all-reduce": lambda: torch.distributed.all_reduce(gloo),
            "native, all-reduce": lambda: comm.all_reduce(flat),
        }
        us = self.measure(sides)
        for name in ("ddp gloo", "native", "native private", "native private, one rank"):
            ranks = 1 if name.endswith("one rank") else comm.size
            wire = us.get(f"{name.removesuffix(' private')}, all-reduce") if ranks > 1 else 0.0
            self.say(
                Record("two ranks", name, model, batch, ranks, 1, us[name],
                       communication_us=wire, blocks=self.options.blocks)
            )  # fmt: skip

    def epochs(self, batch: int) -> None:
        """Plain torch on all cores of rank 0, and ours, private and paid for, on all ranks."""
        comm, data = self.comm, self.data
        count = round(data.records / batch)
        ours = ways.native("small", batch, data, 1, True, comm).step
        plain = ways.eager("small", batch, data).step if comm.rank == 0 else None
        plan = Plan(
            records=data.records,
            sample_rate=batch / data.records,
            steps=3 * count,
            clip_norm=ways.CLIP_NORM,
            noise_multiplier=ways.NOISE_MULTIPLIER,
            delta=1e-7,
        )
        ledger = Ledger(Path(self.options.data).with_name("ledger.jsonl")) if plain else None
        if ledger:
            ledger.launch("benchmark", plan, comm.size, "")
        toll = Toll(comm, ledger, plan, plan.steps)

        def paid() -> None:
            toll.pay()
            ours()

        taken: dict[str, list[float]] = {"torch eager": [], "native private": []}
        for _ in range(3):
            if plain:
                os.sched_setaffinity(0, self.cores)
                torch.set_num_threads(len(self.cores))
            taken["torch eager"].append(self.seconds(plain, count))
            if plain:
                os.sched_setaffinity(0, {self.cores[0]})
            taken["native private"].append(self.seconds(paid, count))
        for name, times in taken.items():
            ranks, threads = (comm.size, 1) if name != "torch eager" else (1, len(self.cores))
            seconds = statistics.median(times)
            self.say(
                Record("epoch", name, "small", batch, ranks, threads, seconds / count * 1e6,
                       seconds=seconds, blocks=len(times))
            )  # fmt: skip

    def say(self, record: Record) -> None:
        if self.comm.rank == 0:
            print(json.dumps(asdict(record)), flush=True)


def checks_of_two_ranks(records: list[Record]) -> list[Check]:
    us = {(r.part, r.side, r.batch): r.step_us for r in records}
    at_256, at_4096 = (us["two ranks", "native private", batch] for batch in (256, 4096))
    epochs = {r.side: r.seconds or 0 for r in records if r.part == "epoch"}
    return [
        Check(
            "small at 256, two ranks: ddp gloo / native private",
            us["two ranks", "ddp gloo", 256] / at_256,
            at_least=10.0,
        ),
        Check(
            "small at 4096: an epoch on two ranks / on one",
            at_4096 / us["two ranks", "native private, one rank", 4096],
            at_most=0.6,
        ),
        Check(
            f"epoch of {RECORDS} records on two ranks, seconds "
            f"(plain eager: {epochs['torch eager']:.2f})",
            epochs["native private"],
            at_most=1.5,
        ),
    ]


# Memory.


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process, MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) / 1024


def peak_of(side: str, options: Any) -> Record:
    """In a process of its own, all of the data touched first."""
    data = Data(options.data)
    data.rows.sum()
    (model,), (batch,) = options.models, options.batches
    before = resident("VmRSS")
    made = makers(model, batch, data, options.threads)[side]()
    us = block(made.step, options.seconds)
    peak = resident("VmHWM")
    return Record(
        "memory", side, model, batch, 1, options.threads, us,
        peak_mb=peak, above_start_mb=peak - before,
    )  # fmt: skip


def checks_of_memory(records: list[Record]) -> list[Check]:
    peaks = {(r.model, r.batch, r.side): r.peak_mb or 0 for r in records}
    return [
        Check(
            f"{model} at {batch}: peak memory, {side} / torch eager",
            peak / peaks[model, batch, "torch eager"],
            at_most=1.1,
        )
        for (model, batch, side), peak in peaks.items()
        if side.endswith("private")
    ]


def show(record: Record) -> None:
    def us(value: float | None) -> str:
        return "" if value is None else f"{value:,.1f}"

    columns = (
        record.step_us, record.sampler_us, record.loader_us, record.communication_us,
        record.compute_us,
    )  # fmt: skip
    row = f"{record.part:<12}{record.side:<26}{record.model:<7}{record.batch:>5}{record.ranks:>3}"
    extra = f"{record.seconds:9.2f} s" if record.seconds else ""
    extra += f"{record.peak_mb:9.1f} MB" if record.peak_mb else ""
    print(row + "".join(f"{us(value):>12}" for value in columns) + extra, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", default=["process", "ranks", "memory"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=[256, 4096])
    parser.add_argument("--without", nargs="+", default=[], help="sides to leave out")
    parser.add_argument("--threads", type=int, default=2, help="of every side in one process")
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.1, help="of one side in one block")
    parser.add_argument("--probe", type=float, default=1.5, help="0 keeps every block")
    parser.add_argument("--output", help="append the records to this file, a JSON object a line")
    parser.add_argument("--data", help=argparse.SUPPRESS)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        return print(json.dumps(asdict(peak_of(options.peak_of, options))))
    if "RANK" in os.environ:
        rank = Rank(options)
        for batch in options.batches:
            rank.steps("small", batch)
        return rank.epochs(256)
    with tempfile.TemporaryDirectory() as folder:
        run(folder, options)
    return None


def run(folder: str, options: Any) -> None:
    everything, few = f"{folder}/all.bin", f"{folder}/few.bin"
    Data.write(everything, RECORDS)
    Data.write(few, 1 << 16)
    columns = ("step (us)", "sampler", "loader", "communic.", "compute")
    print(f"{'part':<12}{'side':<26}{'model':<7}{'batch':>5}{'p':>3}", end="")
    print("".join(f"{column:>12}" for column in columns))
    checks: list[Check] = []

    def keep(records: list[Record]) -> list[Record]:
        for record in records:
            show(record)
            note(asdict(record))
        return records

    def note(values: dict[str, Any]) -> None:
        if options.output:
            with open(options.output, "a") as file:
                file.write(json.dumps(values) + "\n")

    if "process" in options.parts:
        data, us = Data(everything), {}
        for model, batch in itertools.product(options.models, options.batches):
            records = keep(in_one_process(model, batch, data, options))
            us |= {(r.side, r.model, r.batch): r.step_us for r in records}
            if records:
                r = records[0]
                print(f"# {r.blocks} blocks kept at probe {r.probe:.2f}, {r.dropped} dropped")
        checks += checks_of_one_process(us, options.models, options.batches)
    short = ["--seconds", str(options.seconds), "--blocks", str(options.blocks)]
    if "ranks" in options.parts:
        said = spawn("--data", everything, *short, ranks=2)
        checks += checks_of_two_ranks(keep([Record(**values) for values in said]))
    if "memory" in options.parts:
        peaks = []
        for model, batch in itertools.product(options.models, options.batches):
            for side in ("torch eager", "native private", "general private"):
                case = ["--models", model, "--batches", str(batch), "--data", few]
                peaks += keep([Record(**spawn("--peak-of", side, *case, *short)[0])])
        checks += checks_of_memory(peaks)
    for check in checks:
        target = f"≥ {check.at_least}" if check.at_least is not None else f"≤ {check.at_most}"
        verdict = "holds" if check.holds else "does NOT hold"
        print(f"{check.check:<62}{check.value:8.2f}  {target:<8}{verdict}")
        note(asdict(check) | {"holds": check.holds})


if __name__ == "__main__":
    main()
