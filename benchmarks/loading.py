"""How fast ranks map a prepared folder, what memory they share, and what a sampled batch costs.

    python benchmarks/loading.py            # 8 ranks, 1.2 million records of 40 float32 and a label

Ranks are processes of their own that start together. `ready_ms` runs from the first one's call of
`shards.load` to the last one's return. Then each touches every record; `private_mb` is what that
and loading added to the ranks' own memory (Anonymous), `pss_mb` what they hold together where a
page shared by n ranks counts 1/n to each: both are sums over ranks.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dpcomm.data import shards  # noqa: E402
from dpcomm.privacy.sampling import poisson_sample  # noqa: E402

BATCH, REPEATS = 4096, 500


def memory_kb() -> np.ndarray:
    """Anonymous and Pss of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kb = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return np.array([kb["Anonymous"], kb["Pss"]])


def rank(folder: str, together: Barrier, reports: multiprocessing.Queue) -> None:
    before = memory_kb()
    together.wait()
    begin = time.perf_counter()  # one clock for all processes
    train = shards.load(folder)
    end = time.perf_counter()
    for shard in train.shards:
        shard[:, 0].sum()  # touches every page: a row is shorter than one
    together.wait()
    reports.put((begin, end, *(memory_kb() - before), train.records))
    together.wait()


def load(folder: str, ranks: int) -> dict:
    context = multiprocessing.get_context("spawn")
    together, reports = context.Barrier(ranks), context.Queue()
    arguments = (folder, together, reports)
    processes = [context.Process(target=rank, args=arguments) for _ in range(ranks)]
    for process in processes:
        process.start()
    begin, end, private, pss, records = zip(*(reports.get() for _ in processes), strict=True)
    for process in processes:
        process.join()
    return {
        "op": "load",
        "ranks": ranks,
        "records": records[0],
        "ready_ms": round((max(end) - min(begin)) * 1e3, 2),
        "private_mb": round(sum(private) / 1024, 1),
        "pss_mb": round(sum(pss) / 1024, 1),
    }


def gather(folder: str) -> dict:
    """A Poisson batch from the maps, drawn and gathered; beside it NumPy from one array in memory,
    which is given the ids."""
    train = shards.load(folder)
    whole = train.rows()
    out = np.empty((2 * BATCH, whole.shape[1]), np.float32)
    key, rate = bytes(32), BATCH / train.records
    ids = [poisson_sample(key, step, rate, 0, train.records) for step in range(REPEATS)]

    def take(step: int) -> None:
        np.take(whole, ids[step], axis=0, out=out[: len(ids[step])], mode="clip")

    ways: dict[str, Callable[[int], object]] = {
        "sample_us": lambda step: poisson_sample(key, step, rate, 0, train.records),
        "gather_us": lambda step: train.gather(ids[step], out=out),
        "sample_and_gather_us": lambda step: train.gather(
            poisson_sample(key, step, rate, 0, train.records), out=out
        ),
        "take_out_us": take,
        "take_us": lambda step: np.take(whole, ids[step], axis=0),
        "index_us": lambda step: whole[ids[step]],
    }
    # Interleaved, each at steps of its own, so that none finds its rows in the cache.
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(REPEATS):
        for shift, (name, work) in enumerate(ways.items()):
            begin = time.perf_counter()
            work((step + shift * REPEATS // len(ways)) % REPEATS)
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: round(float(np.median(s)) * 1e6, 1) for name, s in seconds.items()}
    return {"op": "gather", "records": train.records, "batch": BATCH, **medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--records", type=int, default=1_200_000)
    parser.add_argument("--json", type=Path, help="append the records to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        from dpcomm.data import pums
        from dpcomm.data.prepare import prepare
        from dpcomm.data.schema import from_dict
        from dpcomm.data.schema import load as load_schema

        raw, prepared = Path(folder, "pums.csv"), os.path.join(folder, "pums")
        raw.write_bytes(pums.generate(options.records, dirt=False))
        prepare(str(raw), prepared, from_dict({**load_schema("pums").source, "split": {}}))
        records = [load(prepared, ranks) for ranks in options.ranks] + [gather(prepared)]
    for record in records:
        print(json.dumps(record))
    if options.json:
        with options.json.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)


if __name__ == "__main__":
    main()
