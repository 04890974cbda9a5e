"""How fast ranks map a prepared folder, what memory they share, and what a gathered batch costs.

    python benchmarks/loading.py            # 8 ranks, 1.2 million records of 40 float32 and a label

Ranks are processes of their own that start together. `ready` is the slowest rank's time from the
call of `shards.load` to its return; `private` is the memory that a rank adds to the host's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dpcomm.data import shards  # noqa: E402

BATCH, REPEATS = 4096, 200


def private_kb() -> int:
    """Private_Clean + Private_Dirty of this process: pages that no other process shares."""
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))


def rank(folder: str, start: Barrier, reports: multiprocessing.Queue) -> None:
    start.wait()
    before, begin = private_kb(), time.perf_counter()
    train = shards.load(folder)
    ready = time.perf_counter() - begin
    checksum = sum(float(shard[:, 0].sum()) for shard in train.shards)  # touch every page
    start.wait()
    reports.put((ready, private_kb() - before, train.records, checksum))
    start.wait()


def load(folder: str, ranks: int) -> dict:
    context = multiprocessing.get_context("fork")
    start, reports = context.Barrier(ranks), context.Queue()
    processes = [context.Process(target=rank, args=(folder, start, reports)) for _ in range(ranks)]
    for process in processes:
        process.start()
    found = [reports.get() for _ in processes]
    for process in processes:
        process.join()
    return {
        "op": "load",
        "ranks": ranks,
        "records": found[0][2],
        "ready_ms": round(max(f[0] for f in found) * 1e3, 2),
        "private_mb": round(sum(f[1] for f in found) / 1024, 1),
    }


def median_us(work, items: list) -> float:
    times = []
    for item in items:
        begin = time.perf_counter()
        work(item)
        times.append(time.perf_counter() - begin)
    return round(float(np.median(times)) * 1e6, 1)


def gather(folder: str) -> dict:
    """A batch of sorted random ids from the maps, beside `np.take` from one array in memory."""
    train = shards.load(folder)
    whole = np.concatenate(train.shards)
    out = np.empty((BATCH, whole.shape[1]), np.float32)
    rng = np.random.default_rng(0)
    ids = [np.sort(rng.choice(train.records, BATCH, replace=False)) for _ in range(REPEATS)]
    return {
        "op": "gather",
        "records": train.records,
        "batch": BATCH,
        "gather_us": median_us(lambda i: train.gather(i, out=out), ids),
        "take_out_us": median_us(lambda i: np.take(whole, i, axis=0, out=out, mode="clip"), ids),
        "take_us": median_us(lambda i: np.take(whole, i, axis=0), ids),
        "index_us": median_us(lambda i: whole[i], ids),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--records", type=int, default=1_223_992)
    parser.add_argument("--json", type=Path, help="append the records to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        from dpcomm.data import pums
        from dpcomm.data.prepare import prepare
        from dpcomm.data.schema import load as load_schema

        raw, prepared = Path(folder, "pums.csv"), str(Path(folder, "pums"))
        raw.write_bytes(pums.generate(options.records))
        prepare(str(raw), prepared, load_schema("pums"))
        records = [load(prepared, ranks) for ranks in options.ranks] + [gather(prepared)]
    for record in records:
        print(json.dumps(record))
    if options.json:
        with options.json.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)


if __name__ == "__main__":
    main()
