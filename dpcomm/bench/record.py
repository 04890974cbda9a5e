"""What one measurement says. Text, JSON, CSV and plots are views of it."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import IO, Any

# Bus bandwidth is algorithm bandwidth times the share of the buffer that must cross a rank's link:
# the definition of nccl-tests' PERFORMANCE.md, so that one number is comparable between operations
# and rank counts.
_BUS_FACTOR = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
    "broadcast": lambda n: 1.0,
    "reduce": lambda n: 1.0,
    "barrier": lambda n: 0.0,
}

# Bytes that ranks of one host must read and write at least, for each byte of `size`: every input
# once, every output once.
_TRAFFIC = {
    "all_reduce": lambda n: 2 * n,
    "reduce_scatter": lambda n: n + 1,
    "all_gather": lambda n: n + 1,
    "all_to_all": lambda n: 2 * n,
    "broadcast": lambda n: n,
    "reduce": lambda n: n + 1,
}


@dataclass(frozen=True)
class Record:
    """One operation at one size. Times are in microseconds, bandwidths in 10^9 bytes a second."""

    op: str
    algo: str | None
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
    peer: str | None = None  # whose it is, where it is not ours
    model_us: float | None = None  # what the cost model says

    @property
    def name(self) -> str:
        """The algorithm, or the peer."""
        return str(self.algo or self.peer)

    def columns(self) -> dict[str, Any]:
        """What is written: a peer's record has `peer` in place of `algo`."""
        own = {key: value for key, value in asdict(self).items() if value is not None}
        if self.peer is None:
            return own
        return {"op": own.pop("op"), "peer": own.pop("peer"), **own}


COLUMNS = [field.name for field in fields(Record) if field.name not in ("peer", "model_us")]


def bandwidths(op: str, ranks: int, size: int, time_us: float) -> tuple[float, float]:
    """Algorithm and bus bandwidth in GB/s of `size` bytes in `time_us`."""
    algbw = size / time_us / 1e3 if time_us > 0 else 0.0
    return algbw, algbw * _BUS_FACTOR[op](ranks)


def memory_limit(op: str, ranks: int, bandwidth_gbs: float) -> float:
    """The bus bandwidth in GB/s of ranks on one host whose memory moves `bandwidth_gbs`."""
    algbw = bandwidth_gbs / _TRAFFIC[op](ranks)
    return algbw * _BUS_FACTOR[op](ranks)


def slowest_rank_median(times_us: Sequence[Sequence[float]]) -> float:
    """The median over iterations of the maximum over ranks, from one row of times a rank."""
    return statistics.median(max(column) for column in zip(*times_us, strict=True))


_HEADINGS = ("size", "count", "type", "redop", "algo", "transport", "time", "algbw", "busbw")
_UNITS = ("(B)", "(elements)", "", "", "", "", "(us)", "(GB/s)", "(GB/s)")
_LINE = "{:>12} {:>12} {:>9} {:>6} {:>18} {:>9} {:>11} {:>8} {:>8} {:>7}"
_MODEL = " {:>11}"


def heading(model: bool = False) -> str:
    """The two lines above a table of records."""
    names = _LINE.format(*_HEADINGS, "#wrong") + _MODEL.format("model") * model
    units = _LINE.format(*_UNITS, "") + _MODEL.format("(us)") * model
    return "#" + names[1:] + "\n#" + units[1:]


def line(record: Record, model: bool = False) -> str:
    """A record as a row of the table."""
    row = _LINE.format(
        record.bytes,
        record.count,
        record.dtype,
        record.redop,
        record.name,
        record.transport,
        f"{record.time_us:.2f}",
        f"{record.algbw_gbs:.2f}",
        f"{record.busbw_gbs:.2f}",
        "N/A" if record.wrong < 0 else record.wrong,
    )
    predicted = "-" if record.model_us is None else f"{record.model_us:.2f}"
    return row + _MODEL.format(predicted) * model


def write_json(records: Sequence[Record], file: IO[str]) -> None:
    """One JSON object a line."""
    for record in records:
        file.write(json.dumps(record.columns()) + "\n")


def write_csv(records: Sequence[Record], file: IO[str]) -> None:
    """A header and one row a record."""
    rows = [record.columns() for record in records]
    more = [name for name in ("peer", "model_us") if any(name in row for row in rows)]
    writer = csv.DictWriter(file, [*COLUMNS, *more])
    writer.writeheader()
    writer.writerows(rows)
