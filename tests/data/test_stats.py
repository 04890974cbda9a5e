"""Statistics that preparation uses are private and charged, or marked."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dpcomm.accounting import Release
from dpcomm.data import shards, stats
from dpcomm.data.prepare import prepare
from dpcomm.data.schema import Schema, SchemaError, from_dict, load
from dpcomm.data.stats import Statistics
from dpcomm.privacy.ledger import Ledger


def asking() -> Schema:
    source = load("pums").source
    columns = dict(source["columns"])
    for name in ("age", "income"):
        columns[name] = {**columns[name], "impute": "mean"}
    return from_dict({**source, "columns": columns})


def test_public_statistics_are_fixed_values(raw, tmp_path):
    with pytest.raises(
        SchemaError, match=r"columns.age: impute = 'mean' needs stats = dp or exact"
    ):
        prepare(raw, str(tmp_path / "out"), asking())


def test_exact_statistics_are_marked(spark, raw, tmp_path):
    exact = Statistics("exact")
    prepare(raw, str(tmp_path / "a"), asking(), stats=exact)
    prepare(raw, str(tmp_path / "b"), asking(), stats=exact, spark=spark)
    assert (tmp_path / "a" / "_SUCCESS").read_bytes() == (tmp_path / "b" / "_SUCCESS").read_bytes()
    train = shards.load(tmp_path / "a", verify=True)
    assert "not cover" in train.warning
    assert train.ledger == []

    rows = train.rows()
    age, missing = rows[:, train.columns.index("age")], rows[:, train.columns.index("age missing")]
    assert age[missing == 1] == pytest.approx(age[missing == 0].mean(), abs=1e-6)


def test_private_statistics_are_charged_and_near(raw, tmp_path):
    pytest.importorskip("opendp")
    ledger = tmp_path / "ledger.jsonl"
    manifests = {
        kind: prepare(raw, str(tmp_path / kind), asking(), stats=stats, ledger=ledger)
        for kind, stats in (("exact", Statistics("exact")), ("dp", Statistics("dp", 1.0)))
    }
    exact, private = (manifests[k]["transformation"]["statistics"] for k in ("exact", "dp"))
    assert private != exact
    # 16,000 records at a quarter of epsilon 1 a query: noise of 4 units in sum and in count.
    assert private["age"] == pytest.approx(exact["age"], abs=0.2)
    [entry] = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [entry] == shards.load(tmp_path / "dp").ledger
    assert Ledger(ledger).spent() == [Release(1.0, 0.0)]
    assert shards.load(tmp_path / "dp").warning is None


def test_noise_has_the_scale_of_the_sensitivity():
    pytest.importorskip("opendp")
    schema = asking()
    sums = {"age": (0, 10**6), "income": (0, 10**6)}
    drawn = [Statistics("dp", 4.0)._private(schema, sums)["age"] for _ in range(2000)]
    steps, counts = np.array(drawn).T
    # Discrete Laplace of scale b has standard deviation close to b sqrt(2): epsilon 1 a query.
    assert np.std(steps) == pytest.approx(stats.GRID * 2**0.5, rel=0.1)
    assert np.std(counts) == pytest.approx((2 * np.exp(-1)) ** 0.5 / (1 - np.exp(-1)), rel=0.1)


@pytest.mark.parametrize(("kind", "epsilon"), [("dp", None), ("public", 1.0), ("dp", -1.0)])
def test_budget_goes_with_private_statistics(kind, epsilon):
    with pytest.raises(SchemaError, match="epsilon"):
        Statistics(kind, epsilon)
