"""README's table of figures, made of the records in benchmarks/baselines/.

python benchmarks/figures.py            prints it
python benchmarks/figures.py --write    puts it into README.md, between its header and a blank line
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from collectives import LIMIT, OURS, Record, best

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
HEADER = "| what | figure | command |\n|---|---|---|\n"
MODELS = {"small": "40-64-32-1", "wide": "40-512-512-1"}


def records(name: str) -> list[dict[str, Any]]:
    lines = (HERE / "baselines" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def one(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """The last record with these values."""
    return [row for row in rows if all(row.get(k) == v for k, v in wanted.items())][-1]


def shown(us: float) -> str:
    return f"{us:,.0f} µs" if us < 1e4 else f"{us / 1e3:,.1f} ms"


def accuracy() -> Iterator[tuple[str, str, str]]:
    rows = records("accuracy")
    names = {"census": "the real census records", "pums-nine": "1.2 million generated records"}
    for dataset, name in names.items():
        private, plain = [row for row in rows if row["dataset"] == dataset]
        yield (
            f"private training on {name}, ε = {private['epsilon']:.1f} at δ = {private['delta']:g}",
            f"accuracy {private['accuracy']:.3f}, AUC {private['auc']:.3f}; without privacy "
            f"{plain['accuracy']:.3f} and {plain['auc']:.3f}; majority class "
            f"{private['majority']:.3f}",
            "accuracy.py",
        )


def steps() -> Iterator[tuple[str, str, str]]:
    rows = records("step")
    for model, sizes in MODELS.items():
        for batch in (256, 4096):

            def us(side: str, model: str = model, batch: int = batch) -> str:
                row = one(rows, part="one process", side=side, model=model, batch=batch)
                return shown(row["step_us"])

            yield (
                f"one private step, whole, MLP {sizes}, batch {batch:,}, two threads",
                f"native {us('native private')}, any module {us('general private')}; SGD without "
                f"privacy in torch {us('torch eager')}, Opacus' ghost clipping "
                f"{us('opacus ghost')}",
                "step.py",
            )
    epoch = one(rows, part="epoch", side="native private")
    plain = one(rows, part="epoch", side="torch eager")
    yield (
        "a private epoch of 1,223,992 records at batch 256, two ranks",
        f"{epoch['seconds']:.2f} s; SGD without privacy in torch, two threads, "
        f"{plain['seconds']:.2f} s",
        "step.py --parts ranks",
    )


def collectives() -> Iterator[tuple[str, str, str]]:
    turns = [Record(**row) for row in records("collectives") if "contender" in row]
    for ranks in (2, 4, 8):
        cells = best([turn for turn in turns if turn.ranks == ranks and turn.ended])
        peers: dict[int, float] = {}
        for (name, size), cell in cells.items():
            if name not in (*OURS, LIMIT):
                peers[size] = min(peers.get(size, cell.time_us), cell.time_us)
        figures = [
            f"{kind} buffers "
            + ", ".join(f"{cells[kind, size].time_us / peers[size]:.2f}" for size in sorted(peers))
            for kind in OURS
        ]
        yield (
            f"all_reduce, {ranks} ranks: our time over the best of four peers', at 8 B, 1 KiB, "
            "64 KiB, 1, 16 and 64 MiB",
            "; ".join(figures),
            f"collectives.py --ranks {ranks}",
        )


def kernels() -> Iterator[tuple[str, str, str]]:
    rows = records("kernels")
    kinds = {
        "ChaCha20": "dpcomm chacha20",
        "Philox": "dpcomm philox",
        "`torch.normal_`": "torch.normal_",
        "NumPy's Philox": "numpy Philox",
    }
    found = {
        name: one(rows, op="add_noise", kernel=kernel, threads=1)["ns_per_number"]
        for name, kernel in kinds.items()
    }
    yield (
        "noise, one thread, ns a number",
        ", ".join(f"{name} {ns:.2f}" for name, ns in found.items()),
        "kernels.py",
    )
    shape = {"op": "clip_sum", "shape": [1024, 284161], "threads": 2}
    ours, recipe = (
        one(rows, kernel=kernel, **shape)["time_us"]
        for kernel in ("dpcomm", "per-parameter norms and einsum")
    )
    yield (
        "clip and sum of per-sample gradients [1024, 284161], two threads",
        f"{shown(ours)}; Opacus' recipe in torch {shown(recipe)}",
        "kernels.py",
    )


def data() -> Iterator[tuple[str, str, str]]:
    rows = records("spark")
    whole = {"records": 1223992}
    warm = {
        name: one(rows, engine=engine, cores=cores, **whole)["warm_s"]
        for name, engine, cores in (
            ("Spark", "dpcomm spark", 2),
            ("embedded", "dpcomm embedded", 2),
            ("plain Polars", "polars", 2),
            ("a sequential routine", "sequential", 1),
        )
    }
    yield (
        "preparing 1,223,992 raw records, two cores, warm",
        ", ".join(f"{name} {seconds:.1f} s" for name, seconds in warm.items()),
        "spark.py",
    )
    few, many = (
        one(rows, engine="dpcomm spark, executor apart", records=count)
        for count in (1223992, 12000000)
    )
    yield (
        "12 million raw records, Spark, 9.8 times as many",
        f"{many['warm_s'] / few['warm_s']:.1f} times as long; the driver holds "
        f"{many['driver_mb']} MB, as before",
        "spark.py --records 12000000",
    )
    rows = records("loading")
    ready, gather = one(rows, op="load", ranks=8), one(rows, op="gather")
    yield (
        "8 ranks map 1.2 million records × 40",
        f"ready in {ready['ready_ms']:.0f} ms, {ready['private_mb']:.1f} MB of private memory",
        "loading.py",
    )
    yield (
        "drawing a Poisson batch of 4,096 and gathering its rows",
        f"{gather['sample_and_gather_us']:.0f} µs; `np.take` alone {gather['take_us']:.0f} µs",
        "loading.py",
    )


def table() -> str:
    rows = [*accuracy(), *steps(), *collectives(), *kernels(), *data()]
    return HEADER + "".join(f"| {a} | {b} | `benchmarks/{command}` |\n" for a, b, command in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true")
    if not parser.parse_args().write:
        return print(table(), end="")
    before, rest = README.read_text().split(HEADER)
    after = rest[rest.index("\n\n") + 1 :]
    README.write_text(before + table() + after)
    return None


if __name__ == "__main__":
    main()
