"""The records that a run trains on and is measured by, checked on every rank."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from dpcomm import launch
from dpcomm.data import shards
from dpcomm.train.options import DATASETS, Options


def load(comm: Any, options: Options, split: str, data: shards.Dataset | None) -> shards.Dataset:
    """`data`, or the mapped split of the folder that the options name.

    Collective. Of the ranks that cannot, the first says so, and each ends by itself with code 2:
    were the job ended by one, the others would repeat it.
    """
    try:
        data = data or shards.load(options.data, split)
        fault = _misfit(options, data)
    except shards.ShardError as error:
        fault = f"{error}{_made_by(options)}"
    rank = np.array([comm.rank if fault else comm.size], np.float64)
    first = int(comm.all_reduce(rank, op="min")[0])
    if fault and first == comm.rank:
        who = launch.who(comm.rank, comm.size)
        print(f"dpcomm: {who}: --data {options.data}: {fault}", file=sys.stderr)
    if data is None or first < comm.size:
        raise SystemExit(launch.USAGE)
    return data


def _misfit(options: Options, data: shards.Dataset) -> str:
    """Why the records cannot be trained on, nothing where they can."""
    privacy = data.manifest["privacy"]
    if not options.private or privacy["records_per_unit"] == 1:
        return ""
    return (
        f"up to {privacy['records_per_unit']} records speak of one {privacy['unit']}, but "
        "clipping bounds one record: prepare with records_per_unit = 1 in the schema"
    )


def _made_by(options: Options) -> str:
    """The commands that make a data set of ours where it is looked for; nothing of others'."""
    name, place = options.dataset, options.data
    if name not in DATASETS or place != Path("data") / name:
        return ""
    source = name.removesuffix("-nine")
    return (
        f"\n  fix: python -m dpcomm.data.{source} data/raw/{source} && "
        f"python -m dpcomm.data.prepare data/raw/{source} {place} --schema {name}"
    )
