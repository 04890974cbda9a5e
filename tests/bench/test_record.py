"""A record is what a benchmark says; its formulas are those of nccl-tests' PERFORMANCE.md."""

from __future__ import annotations

import csv
import io
import json

import pytest

from dpcomm.bench import record, sweep

ONE = record.Record(
    op="all_reduce",
    algo="ring",
    transport="shm",
    dtype="float32",
    redop="sum",
    ranks=4,
    hosts=1,
    bytes=1024,
    count=256,
    time_us=2.5,
    algbw_gbs=0.41,
    busbw_gbs=0.61,
    wrong=0,
)


@pytest.mark.parametrize(
    ("op", "factor"),
    [
        ("all_reduce", 1.5),
        ("reduce_scatter", 0.75),
        ("all_gather", 0.75),
        ("broadcast", 1),
        ("reduce", 1),
    ],
)
def test_bus_bandwidth_of_four_ranks(op, factor):
    algbw, busbw = record.bandwidths(op, ranks=4, size=2_000_000, time_us=1000)
    assert algbw == pytest.approx(2.0)
    assert busbw == pytest.approx(2.0 * factor)


def test_the_slowest_rank_counts_and_the_median_iteration():
    assert record.slowest_rank_median([[1, 9, 1], [2, 1, 30]]) == 9


def test_json_and_csv_hold_every_column():
    text = io.StringIO()
    record.write_json([ONE, ONE], text)
    assert [list(json.loads(row)) for row in text.getvalue().splitlines()] == [record.COLUMNS] * 2
    text = io.StringIO()
    record.write_csv([ONE], text)
    (row,) = csv.DictReader(io.StringIO(text.getvalue()))
    assert row["busbw_gbs"] == "0.61"


def test_a_row_stands_under_its_heading():
    width = len(record.line(ONE))
    assert [len(part) for part in record.heading().splitlines()] == [width, width]
    assert record.line(ONE).split()[-1] == "0"


def test_sizes():
    assert sweep.geometric(8, 100, 2) == (8, 16, 32, 64)
    assert sweep.arithmetic(8, 24, 8) == (8, 16, 24)
