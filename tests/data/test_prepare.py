"""Preparation on both engines: the same bytes, every record accounted for."""

from __future__ import annotations

import csv
import filecmp
import inspect
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from dpcomm.data import pums, shards
from dpcomm.data.prepare import prepare
from dpcomm.data.schema import from_dict, load


def same(a: Path, b: Path) -> bool:
    names = sorted(os.listdir(a))
    return names == sorted(os.listdir(b)) and not any(filecmp.cmpfiles(a, b, names, False)[1:])


def test_spark_and_embedded_write_the_same_bytes(spark, raw, prepared, tmp_path):
    prepare(raw, str(tmp_path / "spark"), load("pums"), spark=spark)
    assert same(tmp_path / "spark", prepared)


def test_names_that_a_uri_would_escape(spark, raw, prepared, tmp_path):
    folder = tmp_path / "a b é"
    folder.mkdir()
    os.symlink(raw, folder / "ra%20w.csv")
    prepare(f"file://{folder}", str(folder / "out"), load("pums"), spark=spark)
    assert same(folder / "out", prepared)


def test_bytes_do_not_depend_on_partitions(spark, raw, prepared, tmp_path):
    before = spark.conf.get("spark.sql.files.maxPartitionBytes")
    spark.conf.set("spark.sql.files.maxPartitionBytes", "100k")
    try:
        assert spark.read.text(raw).rdd.getNumPartitions() > 8
        prepare(raw, str(tmp_path / "many"), load("pums"), spark=spark)
    finally:
        spark.conf.set("spark.sql.files.maxPartitionBytes", before)
    assert same(tmp_path / "many", prepared)


def test_spark_submit_on_one_core_writes_the_same_bytes(raw, prepared, tmp_path):
    command = [sys.executable, "-m", "dpcomm.data.java", "spark-submit", "--master", "local[1]"]
    command += [inspect.getfile(prepare), raw, str(tmp_path / "one"), "--schema", "pums"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "20,000 records read" in run.stdout
    assert "income: not a number" in run.stdout
    assert same(tmp_path / "one", prepared)


def plainly(raw: str) -> tuple[Counter, dict[str, list[float]]]:
    """The pums schema as a plain loop: reasons, and the features of each person kept."""
    ranges = {"puma": (60100, 68200), "age": (18, 93), "educ": (1, 16), "income": (-20000, 10**6)}
    fixed = {"age": 45, "educ": 10, "income": 20000, "married": 0, "disability": 0}
    reasons: Counter = Counter()
    people: dict[str, list[float]] = {}
    with open(raw) as file:
        names = file.readline().strip().split(",")
        for line in file:
            fields = line.rstrip("\n").split(",")
            if fields == names:
                continue
            if len(fields) != len(names):
                few = len(fields) < len(names)
                reasons[f"dropped line: too {'few' if few else 'many'} fields"] += 1
                continue
            record = dict(zip(names, fields, strict=True))
            faults, absent, values = [], [], {}
            for name, text in record.items():
                if text in ("", "NA"):
                    values[name] = fixed.get(name)
                    (absent if name in fixed else faults).append(f"{name}: missing")
                elif name in ranges:
                    try:
                        values[name] = float(text)
                    except ValueError:
                        faults.append(f"{name}: not a number")
                        continue
                    if not ranges[name][0] <= values[name] <= ranges[name][1]:
                        faults.append(f"{name}: out of range")
                elif name != "personid":
                    codes = ("6",) if name == "state" else ("0", "1")
                    if text not in codes:
                        faults.append(f"{name}: unknown code")
                    else:
                        values[name] = codes.index(text)
            reasons.update(f"dropped {fault}" for fault in faults)
            if faults:
                continue
            reasons.update(f"imputed {reason}" for reason in absent)
            if record["personid"] in people:
                reasons["dropped personid: more than 1 of a unit"] += 1
                continue
            people[record["personid"]] = plain_row(values, {a.split(":")[0] for a in absent})
    return reasons, people


def plain_row(v: dict[str, float], absent: set[str]) -> list[float]:
    def steps(name: str, *edges: float) -> list[float]:
        return [float(v[name] >= edge) for edge in edges]

    row = [*steps("puma", 62000, 63500, 65400, 66000, 67500), v["sex"]]
    row += [(v["age"] - 55.5) / 37.5, *steps("age", 25, 35, 45, 55, 65, 75), "age" in absent]
    row += [(v["educ"] - 8.5) / 7.5, *steps("educ", 9, 10, 13, 14, 16), "educ" in absent]
    row += [(min(max(v["income"], 0), 100000) - 50000) / 50000]
    row += [*steps("income", 1, 5000, 10000, 20000, 35000, 50000, 75000), "income" in absent]
    row += [v["latino"], v["black"], v["asian"], v["married"], "married" in absent, v["uscitizen"]]
    row += [v["disability"], "disability" in absent, v["militaryservice"], v["englishability"]]
    return [*row, v["employed"]]


def test_output_and_counts_are_those_of_a_plain_loop(raw, prepared):
    reasons, people = plainly(raw)
    counts = json.loads((prepared / "manifest.json").read_text())["counts"]
    counted = {
        f"{kind} {reason}": n
        for kind in ("dropped", "imputed")
        for reason, n in counts[kind].items()
    }
    assert counted == dict(reasons)
    assert {"dropped line: too few fields", "imputed income: missing"} <= set(counted)
    assert counts["kept"] == len(people)

    train, test = (shards.load(prepared, split, verify=True) for split in ("train", "test"))
    assert train.records + test.records == len(people)
    assert abs(test.records / len(people) - 0.2) < 0.01
    rows = np.concatenate([train.rows(), test.rows()])
    expected = np.array(list(people.values())).astype(np.float32)
    assert rows.shape == expected.shape
    assert (rows[np.lexsort(rows.T)] == expected[np.lexsort(expected.T)]).all()


def test_nine_binary_features(raw, tmp_path):
    manifest = prepare(raw, str(tmp_path / "nine"), load("pums-nine"))
    assert manifest["columns"][:-1] == [
        "sex=1", "educ>=13", "black=1", "asian=1", "married=1", "uscitizen=1", "disability=1",
        "militaryservice=1", "englishability=1",
    ]  # fmt: skip
    rows = shards.load(tmp_path / "nine").rows()
    assert set(np.unique(rows)) == {0.0, 1.0}


def test_an_embedding_has_its_index_and_its_size(raw, prepared, tmp_path):
    source = load("pums").source
    columns = {**source["columns"], "sex": {**source["columns"]["sex"], "encode": "embed"}}
    manifest = prepare(raw, str(tmp_path / "out"), from_dict({**source, "columns": columns}))
    assert manifest["embeddings"] == {"sex code": 2}
    place = manifest["columns"].index("sex code")
    codes, binary = (shards.load(f).rows()[:, place] for f in (tmp_path / "out", prepared))
    assert shards.load(prepared).columns[place] == "sex=1"
    assert (codes == binary).all()


def test_parquet_beside_the_shards_holds_the_same_rows_and_no_statistics(raw, prepared, tmp_path):
    import pyarrow.parquet as pq

    prepare(raw, str(tmp_path / "both"), load("pums"), parquet=True)
    train = shards.load(tmp_path / "both")
    files = sorted((tmp_path / "both").glob("train-*.parquet"))
    table = np.concatenate(
        [np.stack(list(pq.read_table(f).to_pydict().values()), 1) for f in files]
    )
    assert (table.astype(np.float32) == train.rows()).all()
    assert pq.ParquetFile(files[0]).metadata.row_group(0).column(0).statistics is None
    for file in (tmp_path / "both").glob("*.bin"):
        assert file.read_bytes() == (prepared / file.name).read_bytes()


def test_parquet_in_gives_the_same_shards_as_csv_in(spark, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    clean = pums.generate(3_000, seed=1, dirt=False)
    (tmp_path / "clean.csv").write_bytes(clean)
    rows = list(csv.DictReader(clean.decode().splitlines()))
    columns = {name: [int(row[name]) for row in rows] for name in rows[0]}
    pq.write_table(pa.table(columns), tmp_path / "clean.parquet", row_group_size=700)
    source = load("pums").source
    typed = from_dict({**source, "format": {**source["format"], "kind": "parquet"}})
    prepare(str(tmp_path / "clean.csv"), str(tmp_path / "a"), load("pums"))
    prepare(str(tmp_path / "clean.parquet"), str(tmp_path / "b"), typed)
    prepare(str(tmp_path / "clean.parquet"), str(tmp_path / "c"), typed, spark=spark)
    assert same(tmp_path / "b", tmp_path / "c")
    for file in (tmp_path / "a").glob("*.bin"):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
