"""`python -m dpcomm.data.prepare INPUT OUTPUT --schema census`: raw records to shards, on Spark.

Spark reads, shuffles by shard and retries; its Python workers clean, sort, encode and write whole
Arrow batches. DataFrame API only, one pass over the input, and only reports reach the driver:

    lines → clean → repartitionById(shard) → sort, encode, write

A worker holds one shard at a time: give larger data more shards. The output depends on the input,
the schema and the number of shards alone: not on the engine, the cores or the retries.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa

from dpcomm._core import UsageError
from dpcomm.data import embedded, store
from dpcomm.data.clean import Cleaner, Counts
from dpcomm.data.encode import Transformation
from dpcomm.data.java import JavaError
from dpcomm.data.lines import Layout, layout_of
from dpcomm.data.schema import DataError, Schema, SchemaError, load
from dpcomm.data.session import SparkError, in_a_line, session
from dpcomm.data.stats import Statistics, Tallies, add
from dpcomm.data.store import Job, Shard
from dpcomm.privacy.ledger import Ledger

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

ArrowFunction = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]

_ARROW_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"


def prepare(
    source: str,
    output: str,
    schema: Schema,
    *,
    spark: SparkSession | None = None,
    shards: int = 8,
    parquet: bool = False,
    overwrite: bool = False,
    stats: Statistics = Statistics(),  # noqa: B008 - frozen
    ledger: Path | None = None,
) -> dict[str, Any]:
    """Prepares `source` into `output` and returns the manifest.

    With a session, on Spark, classic or Connect; without, on the embedded engine. A path without a
    scheme is a local one, which every worker must share. What private statistics cost is appended
    to the file `ledger`, which they need, before they are drawn, and stands in the manifest.

    Raises UsageError for private statistics without a ledger, DataError when the input cannot be
    right, SparkError, store.WriteError or OSError when it cannot be read or the output not written;
    nothing is published then.
    """
    hadoop = _hadoop_settings(spark) if spark is not None else {}
    job = Job(schema, store.absolute(output), shards, parquet, hadoop)
    source = store.absolute(source)
    charge = stats.entry(schema)
    if charge is not None and ledger is None:
        raise UsageError("stats = dp needs a ledger, which counts every try: give --ledger FILE")
    into = Transformation(schema) if stats.kind == "public" else None

    def resolve(tallies: Tallies) -> Transformation:
        if charge is not None and ledger is not None:
            _charge(ledger, charge)
        return Transformation(schema, stats.values(schema, tallies))

    if spark is None:
        parts, counts = embedded.collect(job, source)
        store.begin(job, overwrite)
        into = into or resolve(add((job.tallies(own) for own in parts), schema))
        written = embedded.write(job, parts, into, counts)
    else:
        with in_a_line(), _arrow_rows(spark, store.CHUNK):
            rows = _cleaned(spark, job, source)
            store.begin(job, overwrite)
            if into is None:
                rows = rows.persist()
                into = resolve(_tallies(rows, job))
            written, counts = _write(rows, job, into)
            rows.unpersist()
    privacy = {"stats": stats.kind, "ledger": [] if charge is None else [charge]}
    return store.publish(job, written, counts, into, privacy)


@contextmanager
def _arrow_rows(spark: SparkSession, rows: int) -> Iterator[None]:
    """Batches of so many rows for Python workers; the session is the user's."""
    before = spark.conf.get(_ARROW_ROWS) or "10000"
    spark.conf.set(_ARROW_ROWS, str(rows))
    try:
        yield
    finally:
        spark.conf.set(_ARROW_ROWS, before)


def _hadoop_settings(spark: SparkSession) -> dict[str, str]:
    """What the session was told of Hadoop's file systems, so that workers write as Spark reads."""
    prefix = "spark.hadoop."
    return {k.removeprefix(prefix): v for k, v in spark.conf.getAll.items() if k.startswith(prefix)}


def _charge(path: Path, release: dict[str, Any]) -> None:
    ledger = Ledger(path)
    ledger.release(release["epsilon"], release["delta"], release["what"])
    ledger.close()


def _cleaned(spark: SparkSession, job: Job, source: str) -> DataFrame:
    """The valid records as `store.ROW`s, each shard in a partition of its own."""
    from pyspark.errors import AnalysisException
    from pyspark.sql import functions as F

    parts = []
    for split, place in job.sources(source):
        try:
            frame, layout = _read(spark, job, place)
        except AnalysisException as error:
            raise DataError(f"no input at {place}: {str(error).splitlines()[0]}") from error
        parts.append(frame.mapInArrow(_cleaning(job, layout, split), _DDL))
    rows = reduce(lambda a, b: a.unionAll(b), parts)
    return rows.repartitionById(job.shards, F.col("shard"))


_DDL = "shard int, split int, keys binary, records binary"


def _read(spark: SparkSession, job: Job, place: str) -> tuple[DataFrame, Layout | None]:
    """The columns of Parquet, or the lines of CSV and their layout; DataError if neither serves."""
    from pyspark.sql import functions as F

    schema = job.schema
    place = place if "://" in place else f"file://{place}"
    if schema.format.kind == "parquet":
        frame = spark.read.parquet(place)
        job.check_columns(frame.columns, place)
        return frame.select(*(F.col(f"`{c.name}`") for c in schema.columns)), None
    text = spark.read.text(place, lineSep="\n")
    # A line cut here is still too long, and dropped as such; whole, it could fill a worker.
    line = F.substring(F.col("value").cast("binary"), 1, schema.format.longest_line + 2)
    return text.select(F.concat(line, F.lit(b"\n")).alias("line")), _layout(spark, text, schema)


def _layout(spark: SparkSession, text: DataFrame, schema: Schema) -> Layout:
    """Checks the first line of every file; one layout must serve them all."""
    layouts = {}
    for file in map(unquote, text.inputFiles()):
        line = spark.read.text(file, lineSep="\n").head()
        if line is None:
            raise DataError(f"{file} is empty")
        layouts[layout_of(line.value.encode(), schema)] = file
    if len(layouts) > 1:
        raise DataError(f"the headers of {' and '.join(list(layouts.values())[:2])} differ")
    return next(iter(layouts))


def _cleaning(job: Job, layout: Layout | None, split: str | None) -> ArrowFunction:
    def clean(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        cleaner, counts = Cleaner(job.schema), Counts()
        for batch in batches:
            if layout is None:
                cleaned = cleaner.columns(batch)
            else:
                cleaned = cleaner.text(store.content(batch.column(0)), layout)
            counts.add(cleaned.counts)
            yield job.rows(cleaned, split)
        yield job.count_row(counts)

    return clean


def _tallies(rows: DataFrame, job: Job) -> Tallies:
    def tally(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        parts = [part for batch in batches for _, part in job.unpack(batch, Counts())]
        yield pa.record_batch({"tallies": [json.dumps(job.tallies(parts))]})

    found = rows.mapInArrow(tally, "tallies string").collect()
    return add((json.loads(row.tallies) for row in found), job.schema)


def _write(rows: DataFrame, job: Job, into: Transformation) -> tuple[list[Shard], Counts]:
    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        counts = Counts()
        found = [part for batch in batches for part in job.unpack(batch, counts)]
        shards = []
        for shard in {shard for shard, _ in found}:
            parts = [part for place, part in found if place == shard]
            shards += job.write_shard(shard, parts, into, counts)
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
    covered = {
        "public": "statistics: none; bounds and imputed values are public",
        "dp": "".join(
            f"statistics: private, epsilon {spent['epsilon']:g} spent, which training counts"
            for spent in manifest["privacy"]["ledger"]
        ),
        "exact": "statistics: EXACT, not covered by any epsilon",
    }
    lines.append(covered[manifest["privacy"]["stats"]])
    return "\n".join([*lines, "These counts are exact: they are not for publication."])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("dpcomm.data.prepare", description="raw records to shards")
    parser.add_argument(
        "input", help="file, folder or pattern; any path that Spark reads, local without a scheme"
    )
    parser.add_argument("output", help="folder to write; driver and workers must share it")
    parser.add_argument("--schema", required=True, help="a .toml file, or census, pums, pums-nine")
    parser.add_argument(
        "--master",
        help="Spark's master, or sc://host:port of a Connect server;"
        " local[*] unless spark-submit names one",
    )
    parser.add_argument("--engine", choices=("spark", "polars"), default="spark")
    parser.add_argument("--shards", type=int, default=8, help="files a split (8)")
    parser.add_argument("--parquet", action="store_true", help="write Parquet beside the shards")
    parser.add_argument("--overwrite", action="store_true", help="replace a prepared folder")
    parser.add_argument(
        "--stats",
        choices=("public", "dp", "exact"),
        default="public",
        help="where the means, medians and modes come from that the schema imputes: there are none"
        " (public), or they are private (dp), or not covered by epsilon (exact)",
    )
    parser.add_argument("--epsilon", type=float, help="budget of --stats dp")
    parser.add_argument("--ledger", type=Path, help="file that --stats dp needs, and is charged to")
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
            stats=Statistics(options.stats, options.epsilon),
            ledger=options.ledger,
        )
    except (SchemaError, DataError, UsageError) as error:
        print(f"dpcomm.data.prepare: {error}", file=sys.stderr)
        return 2
    except (JavaError, SparkError, store.WriteError, OSError) as error:
        print(f"dpcomm.data.prepare: {error}; nothing was published", file=sys.stderr)
        return 3
    print(report(manifest))
    return 0


if __name__ == "__main__":
    sys.exit(main())
