"""The preparation of `schemas/pums.toml`, written the way users of other tools would write it.

Each function reads the raw CSV file, writes the very shards that dpcomm writes, and returns the
counts that dpcomm reports. The vectorised ones share `finish`, which orders and writes.
"""

from __future__ import annotations

import csv
from array import array
from collections import Counter
from pathlib import Path

import numpy as np

from dpcomm.data import keys

RANGES = {"puma": (60100, 68200), "age": (18, 93), "educ": (1, 16), "income": (-20000, 10**6)}
CODES = {
    "state": ["6"],
    **{name: ["0", "1"] for name in ("sex", "latino", "black", "asian", "married", "uscitizen")},
    **{name: ["0", "1"] for name in ("disability", "militaryservice", "englishability")},
    "employed": ["0", "1"],
}
IMPUTE = {"age": 45, "educ": 10, "income": 20000, "married": 0, "disability": 0}
EDGES = {
    "puma": [62000, 63500, 65400, 66000, 67500],
    "age": [25, 35, 45, 55, 65, 75],
    "educ": [9, 10, 13, 14, 16],
    "income": [1, 5000, 10000, 20000, 35000, 50000, 75000],
}
SCALE = {"age": (18, 93), "educ": (1, 16), "income": (0, 100000)}
ORDER = ["puma", "sex", "age", "educ", "income", "latino", "black", "asian", "married",
         "uscitizen", "disability", "militaryservice", "englishability"]  # fmt: skip
SHARDS, TEST = 8, 0.2
MISSING = ("", "NA")
M64 = 2**64 - 1


def sequential(source: str, output: str) -> Counter[str]:
    """One record after another, as in a first program."""
    counts: Counter[str] = Counter()
    people: dict[str, tuple[int, array]] = {}
    with open(source) as file:
        reader = csv.reader(file)
        header = next(reader)
        for fields in reader:
            if fields == header:
                continue
            counts["read"] += 1
            if len(fields) < len(header):
                counts["line: too few fields"] += 1
                continue
            if len(fields) > len(header):
                counts["line: too many fields"] += 1
                continue
            record, valid, missing = {}, True, []
            for name, text in zip(header, fields, strict=True):
                if text in MISSING:
                    if name in IMPUTE:
                        record[name] = IMPUTE[name]
                        missing.append(name)
                    else:
                        counts[f"{name}: missing"] += 1
                        valid = False
                elif name in RANGES:
                    try:
                        value = int(text)
                    except ValueError:
                        counts[f"{name}: not a number"] += 1
                        valid = False
                        continue
                    if RANGES[name][0] <= value <= RANGES[name][1]:
                        record[name] = value
                    else:
                        counts[f"{name}: out of range"] += 1
                        valid = False
                elif name in CODES:
                    if text in CODES[name]:
                        record[name] = CODES[name].index(text)
                    else:
                        counts[f"{name}: unknown code"] += 1
                        valid = False
            if not valid:
                continue
            for name in missing:
                counts[f"imputed {name}: missing"] += 1
            unit = fields[0]
            if unit in people:
                counts["personid: more than 1 of a unit"] += 1
                continue
            row = array("f")
            for name in ORDER:
                if name in SCALE:
                    low, high = SCALE[name]
                    clamped = min(max(record[name], low), high)
                    row.append((clamped - (low + high) / 2) / ((high - low) / 2))
                elif name not in EDGES:
                    row.append(record[name])
                for edge in EDGES.get(name, ()):
                    row.append(1.0 if record[name] >= edge else 0.0)
                if name in IMPUTE:
                    row.append(1.0 if name in missing else 0.0)
            row.append(record["employed"])
            people[unit] = (scalar_key(unit), row)
    parts: dict[str, list] = {}
    for key, row in people.values():
        split = "test" if scalar_mix(key ^ 0x243F6A8885A308D3) < int(TEST * 2**64) else "train"
        parts.setdefault(f"{split}-{scalar_mix(key) % SHARDS:05d}.bin", []).append((key, row))
    for name, rows in parts.items():
        rows.sort(key=lambda pair: pair[0])
        with open(Path(output, name), "wb") as file:
            for _, row in rows:
                row.tofile(file)
    return counts


def scalar_mix(h: int) -> int:
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & M64
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & M64
    return h ^ (h >> 31)


def scalar_key(unit: str) -> int:
    """`dpcomm.data.keys.of_texts` for one text."""
    data = unit.encode()
    h = len(data) * 0x9E3779B97F4A7C15 & M64
    for i in range(0, len(data), 8):
        word = int.from_bytes(data[i : i + 8], "little")
        h = scalar_mix(((h ^ word) + 0x9E3779B97F4A7C15) & M64)
    return h >> 1


def header_of(source: str) -> list[str]:
    with open(source) as file:
        return file.readline().strip().split(",")


def finish(output: str, units: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    """Encodes, orders by key and writes shards, given each column as an array and what was
    missing as `NAME?`."""
    lengths = np.char.str_len(units)
    key = keys.of_texts(b"".join(units.tolist()), lengths)
    rows = np.empty((len(key), 41), np.float32)
    at = 0
    for name in ORDER:
        if name in SCALE:
            low, high = SCALE[name]
            rows[:, at] = (columns[name].clip(low, high) - (low + high) / 2) / ((high - low) / 2)
            at += 1
        elif name not in EDGES:
            rows[:, at] = columns[name]
            at += 1
        for edge in EDGES.get(name, ()):
            rows[:, at] = columns[name] >= edge
            at += 1
        if name in IMPUTE:
            rows[:, at] = columns[f"{name}?"]
            at += 1
    rows[:, at] = columns["employed"]
    shard, test = keys.shard_of(key, SHARDS), keys.is_test(key, TEST)
    for split, mask in (("train", ~test), ("test", test)):
        for i in range(SHARDS):
            own = np.flatnonzero(mask & (shard == i))
            own = own[np.argsort(key[own])]
            rows[own].tofile(Path(output, f"{split}-{i:05d}.bin"))


def pandas(source: str, output: str) -> Counter[str]:
    import pandas as pd

    counts: Counter[str] = Counter()
    frame = pd.read_csv(source, dtype=str, keep_default_na=False, on_bad_lines="skip")
    header = list(frame.columns)
    # pandas fills short lines and skips long ones in silence: telling takes a second look.
    with open(source) as file:
        fields = np.array([line.count(",") + 1 for line in file][1:])
    data = frame["personid"] != "personid"
    short = fields[fields <= len(header)] < len(header)
    counts["line: too many fields"] = int((fields > len(header)).sum())
    counts["line: too few fields"] = int(short.sum())
    counts["read"] = int(data.sum()) + counts["line: too many fields"]
    frame = frame[data & ~short]
    valid = pd.Series(True, index=frame.index)
    columns: dict[str, pd.Series] = {}
    for name in header[1:]:
        text = frame[name]
        missing = text.isin(MISSING)
        if name in RANGES:
            value = pd.to_numeric(text.where(~missing), errors="coerce")
            faults = {
                "not a number": value.isna() & ~missing,
                "out of range": value.notna() & ~value.between(*RANGES[name]),
            }
        else:
            value = pd.to_numeric(text.where(text.isin(CODES[name])), errors="coerce")
            faults = {"unknown code": value.isna() & ~missing}
        if name in IMPUTE:
            columns[f"{name}?"] = missing
            value = value.where(~missing, IMPUTE[name])
        else:
            faults["missing"] = missing
        columns[name] = value
        for reason, fault in faults.items():
            counts[f"{name}: {reason}"] += int(fault.sum())
            valid &= ~fault
    for name in IMPUTE:
        counts[f"imputed {name}: missing"] = int((columns[f"{name}?"] & valid).sum())
    units = frame["personid"][valid]
    first = ~units.duplicated()
    counts["personid: more than 1 of a unit"] = int((~first).sum())
    units = units[first]
    kept = {name: column[units.index].to_numpy() for name, column in columns.items()}
    finish(output, units.to_numpy().astype("S"), kept)
    return +counts


def polars(source: str, output: str) -> Counter[str]:
    import polars as pl

    counts: Counter[str] = Counter()
    header = header_of(source)
    # As lines first, for read_csv fills short lines and cuts long ones without a word.
    lines = pl.scan_csv(
        source, has_header=False, separator="\n", quote_char=None, new_columns=["line"]
    ).filter(pl.col("line") != ",".join(header))
    fields = pl.col("line").str.count_matches(",", literal=True) + 1
    sizes = lines.select(pl.len(), (fields < 16).sum().alias("few"), (fields > 16).sum()).collect()
    counts["read"], counts["line: too few fields"], counts["line: too many fields"] = sizes.row(0)
    good = lines.filter(fields == len(header)).collect()["line"]
    text = "\n".join(good.to_list()).encode()
    frame = pl.read_csv(text, has_header=False, new_columns=header, infer_schema=False)
    values, faults, flags = [pl.col("personid")], {}, []
    for name in header[1:]:
        missing = pl.col(name).is_null() | pl.col(name).is_in(MISSING)
        if name in RANGES:
            value = pl.col(name).cast(pl.Int64, strict=False)
            faults[f"{name}: not a number"] = value.is_null() & ~missing
            inside = value.is_between(*RANGES[name])
            faults[f"{name}: out of range"] = (value.is_not_null() & ~inside).fill_null(False)
        else:
            value = pl.col(name).replace_strict(
                CODES[name], range(len(CODES[name])), default=None, return_dtype=pl.Int64
            )
            faults[f"{name}: unknown code"] = value.is_null() & ~missing
        if name in IMPUTE:
            flags.append(missing.alias(f"{name}?"))
            value = pl.when(missing).then(IMPUTE[name]).otherwise(value)
        else:
            faults[f"{name}: missing"] = missing
        values.append(value.alias(name))
    typed = (
        frame.lazy()
        .select(*values, *flags, *(fault.alias(reason) for reason, fault in faults.items()))
        .collect()
    )
    counts.update({reason: int(typed[reason].sum()) for reason in faults})
    typed = typed.filter(~pl.any_horizontal(faults.keys()))
    for name in IMPUTE:
        counts[f"imputed {name}: missing"] = int(typed[f"{name}?"].sum())
    unique = typed.unique("personid", keep="first")
    counts["personid: more than 1 of a unit"] = typed.height - unique.height
    columns = {name: unique[name].to_numpy() for name in unique.columns if name not in faults}
    units = columns.pop("personid")
    finish(output, units.astype("S"), columns)
    return +counts


def duckdb(source: str, output: str) -> Counter[str]:
    import duckdb as db

    counts: Counter[str] = Counter()
    header = header_of(source)
    values, faults = ["personid"], {}
    for name in header[1:]:
        missing = f"({name} IS NULL OR {name} IN ('', 'NA'))"
        if name in RANGES:
            value = f"TRY_CAST({name} AS BIGINT)"
            low, high = RANGES[name]
            faults[f"{name}: not a number"] = f"{value} IS NULL AND NOT {missing}"
            faults[f"{name}: out of range"] = (
                f"coalesce({value} NOT BETWEEN {low} AND {high}, false)"
            )
        else:
            codes = ", ".join(f"'{code}'" for code in CODES[name])
            value = f"list_position([{codes}], {name}) - 1"
            faults[f"{name}: unknown code"] = f"{name} NOT IN ({codes}) AND NOT {missing}"
        if name in IMPUTE:
            values.append(f'{missing} AS "{name}?"')
            value = f"CASE WHEN {missing} THEN {IMPUTE[name]} ELSE {value} END"
        else:
            faults[f"{name}: missing"] = missing
        values.append(f'{value} AS "{name}_value"')
    tests = [f'coalesce({test}, false) AS "{reason}"' for reason, test in faults.items()]
    line = f"read_csv('{source}', delim=E'\\x01', quote='', escape='', header=false, "
    line += "columns={'line': 'VARCHAR'}, auto_detect=false)"
    con = db.connect()
    con.execute(f"CREATE TABLE raw AS SELECT string_split(line, ',') AS f FROM {line} "
                f"WHERE line <> '{','.join(header)}'")  # fmt: skip
    few, many, read = con.execute(
        "SELECT count(*) FILTER (len(f) < 16), count(*) FILTER (len(f) > 16), count(*) FROM raw"
    ).fetchone()
    counts.update({"line: too few fields": few, "line: too many fields": many, "read": read})
    named = ", ".join(f"f[{i + 1}] AS {name}" for i, name in enumerate(header))
    con.execute(
        f"CREATE TABLE typed AS SELECT {', '.join([*values, *tests])} "
        f"FROM (SELECT {named} FROM raw WHERE len(f) = 16)"
    )
    sums = ", ".join(f'sum("{reason}"::INT)' for reason in faults)
    totals = con.execute(f"SELECT {sums} FROM typed").fetchone()
    counts.update({reason: int(n) for reason, n in zip(faults, totals, strict=True)})
    any_fault = " OR ".join(f'"{reason}"' for reason in faults)
    con.execute(f"CREATE TABLE valid AS SELECT * FROM typed WHERE NOT ({any_fault})")
    flags = ", ".join(f'sum("{name}?"::INT)' for name in IMPUTE)
    imputed = con.execute(f"SELECT {flags} FROM valid").fetchone()
    counts.update({f"imputed {n}: missing": int(k) for n, k in zip(IMPUTE, imputed, strict=True)})
    kept = con.execute("SELECT DISTINCT ON (personid) * FROM valid").fetchnumpy()
    total = con.execute("SELECT count(*) FROM valid").fetchone()[0]
    counts["personid: more than 1 of a unit"] = total - len(kept["personid"])
    units = kept.pop("personid").astype("S")
    columns = {name.removesuffix("_value"): column for name, column in kept.items()}
    finish(output, units, columns)
    return +counts


PEERS = {f.__name__: f for f in (sequential, pandas, polars, duckdb)}
