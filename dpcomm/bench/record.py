"""What one measurement says. Text, JSON, CSV and plots are views of it."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import IO

# Bus bandwidth is algorithm bandwidth times the share of the buffer that must cross a rank's link:
# the definition of nccl-tests' PERFORMANCE.md, so that one number is comparable between operations
# and rank counts.
_BUS_FACTOR = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "broadcast": lambda n: 1.0,
    "reduce": lambda n: 1.0,
}


@dataclass(frozen=True)
class Record:
    """One operation at one size. Times are in microseconds, bandwidths in 10^9 bytes a second."""

    op: str
    algo: str
    transport: str
    dtype: str
    redop: str
    ranks: int
    hosts: int
    bytes: int
    count: int
    time_us: float
    algbw_gbs: float
    busbw_gbs: float
    wrong: int  # elements that differ from the expected result; -1 where nothing was checked


COLUMNS = [field.name for field in fields(Record)]


def bandwidths(op: str, ranks: int, size: int, time_us: float) -> tuple[float, float]:
    """Algorithm and bus bandwidth in GB/s of `size` bytes in `time_us`."""
    algbw = size / time_us / 1e3 if time_us > 0 else 0.0
    return algbw, algbw * _BUS_FACTOR[op](ranks)


def slowest_rank_median(times_us: Sequence[Sequence[float]]) -> float:
    """The median over iterations of the maximum over ranks, from one row of times a rank."""
    return statistics.median(max(column) for column in zip(*times_us, strict=True))


_HEADINGS = ("size", "count", "type", "redop", "algo", "transport", "time", "algbw", "busbw")
_UNITS = ("(B)", "(elements)", "", "", "", "", "(us)", "(GB/s)", "(GB/s)")
_LINE = "{:>12} {:>12} {:>9} {:>6} {:>18} {:>9} {:>11} {:>8} {:>8} {:>7}"


def heading() -> str:
    """The two lines above a table of records."""
    return "#" + _LINE.format(*_HEADINGS, "#wrong")[1:] + "\n#" + _LINE.format(*_UNITS, "")[1:]


def line(record: Record) -> str:
    """A record as a row of the table."""
    return _LINE.format(
        record.bytes,
        record.count,
        record.dtype,
        record.redop,
        record.algo,
        record.transport,
        f"{record.time_us:.2f}",
        f"{record.algbw_gbs:.2f}",
        f"{record.busbw_gbs:.2f}",
        "N/A" if record.wrong < 0 else record.wrong,
    )


def write_json(records: Sequence[Record], file: IO[str]) -> None:
    """One JSON object a line."""
    for record in records:
        file.write(json.dumps(asdict(record)) + "\n")


def write_csv(records: Sequence[Record], file: IO[str]) -> None:
    """A header and one row a record."""
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows(asdict(record) for record in records)
