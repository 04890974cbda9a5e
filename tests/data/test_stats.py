"""Statistics that preparation uses are private and charged, or marked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dpcomm._core import UsageError
from dpcomm.accounting import Release
from dpcomm.data import shards, stats
from dpcomm.data.prepare import main, prepare
from dpcomm.data.schema import Schema, SchemaError, from_dict, load
from dpcomm.data.stats import Statistics
from dpcomm.privacy.ledger import Ledger


def asking(**statistics: str) -> Schema:
    source = load("pums").source
    columns = dict(source["columns"])
    for name, statistic in (statistics or {"age": "mean", "income": "mean"}).items():
        columns[name] = {**columns[name], "impute": statistic}
    return from_dict({**source, "columns": columns})


EVERY = {"age": "mean", "educ": "median", "income": "median", "married": "mode"}


def test_public_statistics_are_fixed_values(raw, tmp_path):
    with pytest.raises(
        SchemaError, match=r"columns.age: impute = 'mean' needs stats = dp or exact"
    ):
        prepare(raw, str(tmp_path / "out"), asking())


def test_exact_statistics_are_marked(spark, raw, tmp_path):
    exact, schema = Statistics("exact"), asking(**EVERY)
    prepare(raw, str(tmp_path / "a"), schema, stats=exact)
    prepare(raw, str(tmp_path / "b"), schema, stats=exact, spark=spark)
    assert (tmp_path / "a" / "_SUCCESS").read_bytes() == (tmp_path / "b" / "_SUCCESS").read_bytes()
    train = shards.load(tmp_path / "a", verify=True)
    assert "not cover" in train.warning
    assert train.ledger == []

    rows = train.rows()

    def present_and_imputed(name: str, feature: str) -> tuple[np.ndarray, np.ndarray]:
        column = rows[:, train.columns.index(feature)]
        missing = rows[:, train.columns.index(f"{name} missing")] == 1
        return column[~missing], column[missing]

    present, imputed = present_and_imputed("age", "age")
    assert imputed == pytest.approx(present.mean(), abs=1e-6)
    present, imputed = present_and_imputed("educ", "educ")
    assert (imputed == np.median(present)).all(), "sixteen codes fit the histogram: exact"
    present, imputed = present_and_imputed("income", "income")
    assert imputed == pytest.approx(np.median(present), abs=2 / stats.BINS)
    present, imputed = present_and_imputed("married", "married=1")
    assert len(imputed) > 0
    assert (imputed == (present.mean() > 0.5)).all()


def test_private_statistics_are_charged_and_near(raw, tmp_path):
    pytest.importorskip("opendp")
    ledger = tmp_path / "ledger.jsonl"
    manifests = {
        kind: prepare(raw, str(tmp_path / kind), asking(**EVERY), stats=stats, ledger=ledger)
        for kind, stats in (("exact", Statistics("exact")), ("dp", Statistics("dp", 1.0)))
    }
    exact, private = (manifests[k]["transformation"]["statistics"] for k in ("exact", "dp"))
    assert private != exact
    # 16,000 records at a fifth of epsilon 1 a query: noise of 5 units in sum and in each count.
    assert private["age"] == pytest.approx(exact["age"], abs=0.2)
    assert private["educ"] == exact["educ"]
    assert private["income"] == pytest.approx(exact["income"], abs=2000)
    assert private["married"] == exact["married"] == "1"
    [entry] = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [entry] == shards.load(tmp_path / "dp").ledger
    assert Ledger(ledger).spent() == [Release(1.0, 0.0)]
    assert shards.load(tmp_path / "dp").warning is None


def test_noise_has_the_scale_of_the_sensitivity():
    pytest.importorskip("opendp")
    schema = asking()
    tally = np.array([0, 10**6])
    drawn = [Statistics("dp", 4.0)._private(tally, schema["age"], schema) for _ in range(2000)]
    steps, counts = np.array(drawn).T
    # Discrete Laplace of scale b has standard deviation close to b sqrt(2): epsilon 1 a query.
    assert np.std(steps) == pytest.approx(stats.GRID * 2**0.5, rel=0.1)
    assert np.std(counts) == pytest.approx((2 * np.exp(-1)) ** 0.5 / (1 - np.exp(-1)), rel=0.1)


@pytest.mark.parametrize(("kind", "epsilon"), [("dp", None), ("public", 1.0), ("dp", -1.0)])
def test_budget_goes_with_private_statistics(kind, epsilon):
    with pytest.raises(SchemaError, match="epsilon"):
        Statistics(kind, epsilon)


def test_a_histogram_is_one_query_and_its_noise_grows_with_the_records_of_a_unit():
    pytest.importorskip("opendp")
    schema = from_dict({**asking(educ="median", married="mode").source, "records_per_unit": 3})
    assert "2 queries" in Statistics("dp", 1.0).entry(schema)["what"]
    tally = np.zeros(20_000, np.int64)
    noise = Statistics("dp", 1.0)._private(tally, schema["educ"], schema)
    assert np.std(noise) == pytest.approx(2 * 3 * 2**0.5, rel=0.1)


def test_extremes_of_the_tallies():
    schema = asking(**EVERY)
    nothing = Statistics("exact").values(schema, stats.none(schema))
    assert nothing["income"] == pytest.approx(0, abs=50)
    assert (nothing["age"], nothing["educ"], nothing["married"]) == (55.5, 1.0, "0")
    one = stats.none(schema)
    one["educ"][-1] = one["income"][-1] = one["married"][1] = 1
    values = Statistics("exact").values(schema, one)
    assert (values["educ"], values["married"]) == (16.0, "1")
    assert values["income"] == pytest.approx(100_000, abs=50)


def test_what_asks_for_no_statistic_is_not_charged():
    with pytest.raises(SchemaError, match="no column's impute asks for a statistic"):
        Statistics("dp", 1.0).entry(load("pums"))


def test_a_budget_without_opendp_is_refused_before_any_work(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(stats, "find_spec", lambda name: None)
    with pytest.raises(SchemaError, match=r"pip install 'dpcomm\[private\]'"):
        prepare(raw, str(tmp_path / "out"), asking(), stats=Statistics("dp", 1.0))
    assert not (tmp_path / "out").exists()


def test_private_statistics_without_a_ledger_are_refused_before_any_work(raw, tmp_path):
    pytest.importorskip("opendp")
    with pytest.raises(UsageError, match=r"needs a ledger.* give --ledger FILE"):
        prepare(raw, str(tmp_path / "out"), asking(**EVERY), stats=Statistics("dp", 1.0))
    assert not (tmp_path / "out").exists()


def test_a_ledger_in_use_ends_with_2_and_nothing_drawn(raw, tmp_path, capsys, monkeypatch):
    pytest.importorskip("opendp")
    monkeypatch.setattr(stats, "_laplace", lambda *_: pytest.fail("drawn before it was charged"))
    schema = tmp_path / "schema.toml"
    text = (Path(stats.__file__).parent / "schemas" / "pums.toml").read_text()
    schema.write_text(text.replace("impute = 45", 'impute = "mean"'))
    training = Ledger(tmp_path / "ledger.jsonl")
    flags = ["--engine", "polars", "--schema", str(schema), "--stats", "dp", "--epsilon", "0.5"]
    code = main([raw, str(tmp_path / "out"), *flags, "--ledger", str(training.path)])
    training.close()
    assert code == 2
    assert f"ledger {training.path} is in use by another job: wait" in capsys.readouterr().err
    assert not (tmp_path / "out" / "_SUCCESS").exists()
