"""The same preparation by a sequential routine, pandas, Polars, DuckDB and dpcomm, in one table.

    python benchmarks/spark.py                      # 1,223,992 raw records, every engine
    python benchmarks/spark.py --records 12000000   # dpcomm on Spark: time and memory as data grow

Each engine runs in a process of its own, on the cores it is given, and must write the same shards
and report the same counts, or the benchmark fails. `cold` is a command from nothing (imports, JVM
and all), `warm` the median of seven more preparations in the same process.

With more records than that, only Spark runs, its executor in a JVM of its own so that the driver's
memory is the driver's alone, and the driver's heap capped at half of Spark's default: a JVM takes
what it may, so that its resident size tells little. The benchmark fails where time grows faster
than the records, or what lives in the driver, Python's memory and the heap after a collection, by
a tenth.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
RECORDS = 1_223_992
WARM = 7
# name, cores: what is compared, in the order of the table
ENGINES = [
    ("sequential", 1),
    ("pandas", 2),
    ("duckdb", 2),
    ("polars", 2),
    ("dpcomm embedded", 2),
    ("dpcomm spark", 1),
    ("dpcomm spark", 2),
]
GROWTH = [("dpcomm spark, executor apart", 2)]


def work(engine: str, cores: int, source: str, output: str) -> None:
    """Runs one engine in this process; prints its record as JSON."""
    started = time.time() - time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)
    seconds, first = [], 0.0
    if engine.startswith("dpcomm"):
        from dpcomm.data.prepare import prepare, session
        from dpcomm.data.schema import load

        masters = {
            "dpcomm spark": f"local[{cores}]",
            GROWTH[0][0]: f"local-cluster[1,{cores},1024]",
        }
        spark = session(masters[engine]) if engine in masters else None
        if spark is not None:
            spark.sparkContext.setLogLevel("OFF")
        for _ in range(1 + WARM):
            begin = time.time()
            manifest = prepare(source, output, load("pums"), spark=spark, overwrite=True)
            seconds.append(time.time() - begin)
            first = first or time.time()
        counts = manifest["counts"]
        found = Counter({"read": counts["read"], **counts["dropped"]})
        found.update({f"imputed {reason}": n for reason, n in counts["imputed"].items()})
    else:
        from prepare_peers import PEERS

        for _ in range(1 if engine == "sequential" else 1 + WARM):
            shutil.rmtree(output, ignore_errors=True)
            os.makedirs(output)
            begin = time.time()
            found = PEERS[engine](source, output)
            seconds.append(time.time() - begin)
            first = first or time.time()
    heap_mb = _live_heap_mb(spark) if engine.startswith("dpcomm") and spark is not None else 0
    record = {
        "op": "prepare",
        "engine": engine,
        "cores": cores,
        "cold_s": round(first - started, 3),
        "warm_s": round(statistics.median(seconds[1:] or seconds), 3),
        "driver_mb": _peak_mb(os.getpid()),
        "jvm_mb": max((_peak_mb(pid) for pid in _children("java")), default=0),
        "heap_mb": heap_mb,
        "counts": dict(found),
        "sha256": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(Path(output).glob("*.bin"))
        },
    }
    print(json.dumps(record))


def _peak_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def _live_heap_mb(spark: Any) -> int:
    jvm = spark.sparkContext._jvm
    jvm.System.gc()
    runtime = jvm.Runtime.getRuntime()
    return round((runtime.totalMemory() - runtime.freeMemory()) / 2**20)


def _children(name: str) -> list[int]:
    pids = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in pids if Path(f"/proc/{pid}/comm").read_text().strip() == name]


def run(engine: str, cores: int, source: Path, output: Path, records: int) -> dict:
    command = [sys.executable, __file__, "--worker", engine, "--cores", str(cores)]
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    environment = {**os.environ, "POLARS_MAX_THREADS": str(cores)}
    if engine == GROWTH[0][0]:
        environment["SPARK_DRIVER_MEMORY"] = "512m"
    done = subprocess.run(
        [*command, str(source), str(output)],
        capture_output=True,
        text=True,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, chosen),
    )
    if done.returncode:
        sys.exit(f"{engine}: {done.stderr[-2000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "records": records}


def line(record: dict, base: dict) -> str:
    return (
        f"{record['engine']:28} {record['cores']:>5} {record['records']:>11,}"
        f" {record['cold_s']:>8.2f} {record['warm_s']:>8.2f}"
        f" {base['warm_s'] / record['warm_s']:>9.1f}x"
        f" {record['driver_mb']:>9,} {record['jvm_mb']:>7,}"
        f" {record['heap_mb']:>8,}"
    )


def differences(done: list[dict], outputs: list[tuple]) -> list[str]:
    return [
        f"{record['engine']} differs from {done[0]['engine']}"
        for record, output in zip(done, outputs, strict=True)
        if output != outputs[0]
    ]


def growth(small: dict, large: dict) -> list[str]:
    times = {key: large[key] / small[key] for key in ("records", "warm_s")}
    failed = []
    if times["warm_s"] > times["records"]:
        failed.append(
            f"{times['records']:.1f} times the records took {times['warm_s']:.1f} times as long"
        )
    for key in ("driver_mb", "heap_mb"):
        if large[key] > 1.1 * small[key]:
            failed.append(f"{key} grew from {small[key]} to {large[key]}")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, default=2, help=argparse.SUPPRESS)
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--only", nargs="+", help="the engines to run, the first as the base")
    parser.add_argument("--json", type=Path, help="append the records to this file")
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.cores, *options.paths)
        return 0

    from dpcomm.data import pums

    grows = options.records > RECORDS
    engines = GROWTH if grows else ENGINES
    engines = [(name, cores) for name, cores in engines if name in (options.only or [name])]
    sizes = [RECORDS, options.records] if grows else [options.records]
    done: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            source = Path(folder, f"pums-{size}.csv")
            source.write_bytes(pums.generate(size))
            for engine, cores in engines:
                done.append(run(engine, cores, source, Path(folder, "out"), size))
            source.unlink()
    print(f"# {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(
        f"{'engine':28} cores     records   cold s   warm s   against  driver MB  JVM MB  heap MB"
    )
    for record in done:
        print(line(record, done[0]))
    outputs = [(record.pop("counts"), record.pop("sha256")) for record in done]
    if options.json:
        with options.json.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in done)
    failed = growth(*done) if grows else differences(done, outputs)
    print("\n".join(failed or ["flat and linear" if grows else "all outputs are equal"]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
