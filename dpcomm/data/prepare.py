"""`python -m dpcomm.data.prepare INPUT OUTPUT --schema census`: raw records to shards, on Spark.

Spark reads, shuffles by shard, sorts and retries; its Python workers clean and encode whole Arrow
batches. DataFrame API only, one pass over the input, and nothing but reports reaches the driver:

    lines → clean → repartitionById(shard) → sort(split, key, payload) → encode and write

The output depends on the input and the schema alone: not on the engine, the cores or the retries.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dpcomm.data import embedded, java, store
from dpcomm.data.clean import Cleaner, Counts, check_first_line
from dpcomm.data.encode import Transformation
from dpcomm.data.java import JavaError
from dpcomm.data.schema import DataError, Schema, SchemaError, load
from dpcomm.data.store import Job, Shard

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

ArrowFunction = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]

_ARROW_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"


def session(master: str | None = None) -> SparkSession:
    """A Spark session on `master`; under spark-submit, the session that it set up."""
    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        java.set_environment()
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("dpcomm.data.prepare")
    if master is not None:
        builder = builder.master(master)
    package_root = str(Path(__file__).parents[2])
    return (
        builder.config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.executorEnv.PYTHONPATH", package_root)
        .config("spark.executorEnv.POLARS_MAX_THREADS", "1")
        .getOrCreate()
    )


def prepare(
    source: str,
    output: str,
    schema: Schema,
    *,
    spark: SparkSession | None = None,
    shards: int = 8,
    parquet: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Prepares `source` into `output` and returns the manifest.

    With a session, on Spark; without, on the embedded engine. Raises DataError when the input
    cannot be right, and then publishes nothing.
    """
    job = Job(schema, output, shards, parquet)
    into = Transformation(schema)
    if spark is None:
        parts, counts = embedded.collect(job, source)
        store.begin(job, overwrite)
        written = embedded.write(job, parts, into, counts)
    else:
        batch_rows = spark.conf.get(_ARROW_ROWS) or "10000"
        spark.conf.set(_ARROW_ROWS, str(embedded.ROWS))
        try:
            rows = _cleaned(spark, job, source)
            store.begin(job, overwrite)
            written, counts = _write(rows, job, into)
        finally:
            spark.conf.set(_ARROW_ROWS, batch_rows)
    return store.publish(job, written, counts, into, {"stats": "public", "ledger": []})


def _cleaned(spark: SparkSession, job: Job, source: str) -> DataFrame:
    """The valid records as `store.ROW`s: by shard, sorted by split, key and payload."""
    from pyspark.sql import functions as F

    schema, parts = job.schema, []
    for split, place in job.sources(source):
        if schema.format.kind == "parquet":
            frame = spark.read.parquet(place)
            job.check_columns(frame.columns, place)
            frame = frame.select(*(F.col(f"`{c.name}`") for c in schema.columns))
            cleaner = Cleaner(schema)
        else:
            text = spark.read.text(place, lineSep="\n")
            cleaner = Cleaner(schema, _header(spark, text, place, schema))
            # A cut line is still too long, and counted as such; it must not fill a worker.
            line = F.substring(F.col("value").cast("binary"), 1, schema.format.longest_line + 2)
            frame = text.select(F.concat(line, F.lit(b"\n")).alias("line"))
        parts.append(frame.mapInArrow(_cleaning(job, cleaner, split), _DDL))
    rows = parts[0]
    for part in parts[1:]:
        rows = rows.unionAll(part)
    by_shard = rows.repartitionById(job.shards, F.col("shard"))
    return by_shard.sortWithinPartitions("split", "key", "payload")


_DDL = "shard int, split int, key long, payload binary"


def _header(spark: SparkSession, text: DataFrame, place: str, schema: Schema) -> list[str]:
    """Checks the first line of every file; they must name the columns in the same order."""
    header: list[str] | None = None
    for file in text.inputFiles():
        line = spark.read.text(file, lineSep="\n").head()
        if line is None:
            raise DataError(f"{file} is empty")
        fields = check_first_line(line.value.encode(), schema)
        if header not in (None, fields):
            raise DataError(f"{file}: its header has another order than the files before it")
        header = fields
    if header is None:
        raise DataError(f"no input at {place}")
    return header


def _cleaning(job: Job, cleaner: Cleaner, split: str | None) -> ArrowFunction:
    def clean(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        counts = Counts()
        for batch in batches:
            is_text = job.schema.format.kind == "csv"
            content = store.content(batch.column(0)) if is_text else batch
            cleaned = cleaner.text(content) if is_text else cleaner.columns(content)
            counts.add(cleaned.counts)
            yield job.rows(cleaned, split)
        yield job.count_row(counts)

    return clean


def _write(rows: DataFrame, job: Job, into: Transformation) -> tuple[list[Shard], Counts]:
    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        batches = (batch for batch in batches if batch.num_rows)
        if (first := next(batches, None)) is None:
            return
        counts = Counts()
        records = store.unpack(chain([first], batches), job.schema, counts)
        shards = job.write_shard(first.column(0)[0].as_py(), records, into, counts)
        report = {"shards": [vars(shard) for shard in shards], "counts": counts.to_dict()}
        yield pa.record_batch({"report": [json.dumps(report)]})

    written, counts = [], Counts()
    for row in rows.mapInArrow(write, "report string").collect():
        report = json.loads(row.report)
        written += [Shard(**shard) for shard in report["shards"]]
        counts.add(Counts.from_dict(report["counts"]))
    return written, counts


def report(manifest: dict[str, Any]) -> str:
    """What became of the records, for the screen."""
    counts, splits = manifest["counts"], manifest["splits"]
    sizes = {split: sum(s["records"] for s in shards) for split, shards in splits.items()}
    lines = [
        f"{counts['read']:,} records read, {counts['kept']:,} kept:"
        f" {sizes['train']:,} to train and {sizes['test']:,} to test,"
        f" {len(manifest['columns']) - 1} features"
    ]
    for kind in ("dropped", "repaired", "imputed"):
        lines += [f"  {kind:8} {n:>9,}  {reason}" for reason, n in counts[kind].items()]
    stats = manifest["privacy"]["stats"]
    return "\n".join([*lines, f"statistics: {stats}. These counts are exact: not for publication."])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("dpcomm.data.prepare", description="raw records to shards")
    parser.add_argument("input", help="file, folder or pattern; any path that Spark reads")
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--schema", required=True, help="a .toml file, or census, pums, pums-nine")
    parser.add_argument("--master", help="Spark's master; local[*] unless spark-submit names one")
    parser.add_argument("--engine", choices=("spark", "polars"), default="spark")
    parser.add_argument("--shards", type=int, default=8, help="files a split (8)")
    parser.add_argument("--parquet", action="store_true", help="write Parquet beside the shards")
    parser.add_argument("--overwrite", action="store_true", help="replace a prepared folder")
    options = parser.parse_args(arguments)
    if options.engine == "polars" and options.master:
        parser.error("--master is Spark's; leave it out or use --engine spark")
    try:
        schema = load(options.schema)
        spark = session(options.master) if options.engine == "spark" else None
        manifest = prepare(
            options.input,
            options.output,
            schema,
            spark=spark,
            shards=options.shards,
            parquet=options.parquet,
            overwrite=options.overwrite,
        )
    except (SchemaError, DataError) as error:
        print(f"dpcomm.data.prepare: {error}", file=sys.stderr)
        return 2
    except (JavaError, OSError) as error:
        print(f"dpcomm.data.prepare: {error}; nothing was published", file=sys.stderr)
        return 3
    print(report(manifest))
    return 0


if __name__ == "__main__":
    sys.exit(main())
