"""A plan refuses parts that do not fit, and says what it promises."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from groups import run_threads

from dpcomm import MismatchError, accounting
from dpcomm.privacy.plan import UNSAFE, Plan, check_same_plan

PLAN = Plan(
    records=10_000, sample_rate=0.02, steps=100, clip_norm=1.0, noise_multiplier=1.2, delta=1e-5
)


def test_a_plan_does_not_change():
    with pytest.raises(FrozenInstanceError):
        PLAN.clip_norm = 2.0


def test_ranks_see_that_they_differ_in_any_field():
    other: dict[str, Any] = {
        "records": 10_001,
        "sample_rate": 0.021,
        "steps": 101,
        "clip_norm": 1.1,
        "noise_multiplier": 1.3,
        "delta": 1e-6,
        "noise": UNSAFE,
        "accountant": "rdp",
        "dataset": "another",
    }
    for name, value in other.items():
        plans = PLAN, replace(PLAN, **{name: value})
        for error in run_threads(
            2, lambda comm, plans=plans: check_same_plan(plans[comm.rank], comm)
        ):
            assert isinstance(error, MismatchError)
            assert f"{name} is {getattr(PLAN, name)} on rank 0, {value} on rank 1" in str(error)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("records", 0, "at least one record"),
        ("sample_rate", 0.0, "sample_rate=0.0"),
        ("steps", 0, "at least one step"),
        ("clip_norm", float("inf"), "clip_norm=inf"),
        ("clip_norm", float("nan"), "clip_norm=nan"),
        ("noise_multiplier", 0.0, "train without a plan"),
        ("delta", 1e-4, "less than one over the records"),
        ("sampler", "shuffle", "sampler='shuffle' does not fit: use 'poisson'"),
        ("accountant", "gdp", "never count less than was spent"),
        ("neighbouring", "replace-one", "twice that"),
        ("noise", "laplace", "does not fit"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(PLAN, **{field: value})


def test_the_explanation_states_the_numbers_and_the_trust():
    text = PLAN.explain()
    spent = accounting.epsilon(0.02, 1.2, 100, 1e-5)
    for part in ("10,000", f"ε = {accounting.show(spent)}", "δ = 1e-05", "100 steps", "about 200"):
        assert part in text
    assert "Trust" in text
    assert "Nothing is guaranteed" in replace(PLAN, noise=UNSAFE).explain()
