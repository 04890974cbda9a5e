"""The audit's bound against theory, and the audit on this build and on broken ones."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
from scipy import stats

import dpcomm
from dpcomm import _core, audit
from dpcomm.privacy.clipping import ClipRule
from dpcomm.privacy.step import PrivateStep


def test_without_delta_the_bound_is_that_of_clopper_and_pearson():
    for correct, guesses in ((9, 10), (90, 100), (999, 1000)):
        p = stats.beta.ppf(0.05, correct, guesses - correct + 1)
        expected = max(0.0, math.log(p / (1 - p)))
        assert audit.lower_bound(correct, guesses, guesses, 0.0) == pytest.approx(expected)


def test_chance_is_the_definition_summed_out():
    correct, guesses, canaries, epsilon, delta = 8, 12, 20, 0.7, 1e-3
    p = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [math.comb(guesses, k) * p**k * (1 - p) ** (guesses - k) for k in range(guesses + 1)]
    tail = [sum(mass[k:]) for k in range(guesses + 1)]
    gain = max((tail[correct - i] - tail[correct]) / i for i in range(1, correct + 1))
    expected = tail[correct] + 2 * canaries * delta * gain
    assert audit.chance(correct, guesses, canaries, epsilon, delta) == pytest.approx(expected)


def test_the_bound_grows_with_right_guesses_and_shrinks_with_delta():
    bounds = [audit.lower_bound(k, 1000, 5000, 1e-6) for k in (500, 700, 900, 1000)]
    assert bounds[0] == 0
    assert bounds == sorted(bounds)
    assert math.isfinite(bounds[-1])
    assert audit.lower_bound(900, 1000, 5000, 1e-4) < bounds[2]


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomized_response_is_rarely_bounded_above_its_epsilon(epsilon):
    # The mechanism for which the bound is tight: the coin is told rightly with e^ε / (1 + e^ε).
    rng = np.random.default_rng(1)
    p = math.exp(epsilon) / (1 + math.exp(epsilon))
    bounds = [audit.lower_bound(k, 2000, 2000, 0.0) for k in rng.binomial(2000, p, 400)]
    beyond = np.mean(np.array(bounds) > epsilon)
    assert beyond < 0.09
    assert np.median(bounds) > 0.85 * epsilon


@pytest.mark.parametrize(
    "numbers", [(5, 4, 10, 0.1), (1, 2, 1, 0.1), (-1, 2, 4, 0.1), (0, 0, 4, 0.1), (1, 2, 4, 1.0)]
)
def test_numbers_that_cannot_be_are_refused(numbers):
    with pytest.raises(dpcomm.UsageError):
        audit.lower_bound(*numbers)


def test_a_guess_is_right_where_presence_follows_the_score():
    scores = np.arange(10.0)
    assert audit.guess(scores, scores >= 5, 6) == 6
    assert audit.guess(scores, scores < 5, 6) == 0


def run(monkeypatch, path) -> tuple[int, dict]:
    monkeypatch.setattr(sys, "argv", ["dpcomm.audit", "--json", str(path)])
    code = audit.main()
    return code, json.loads(path.read_text())


def test_this_build_passes(monkeypatch, tmp_path, capsys):
    code, record = run(monkeypatch, tmp_path / "audit.json")
    assert code == 0
    # It sees much of what there is to see: a bound of nothing would pass every build.
    assert 0.4 * record["epsilon"] < record["lower_bound"] < record["epsilon"]
    assert "ε at least" in capsys.readouterr().out


def halve_the_noise(monkeypatch):
    whole = PrivateStep.__init__

    def broken(self, comm, size, clip_norm, noise_multiplier, *args, **options):
        whole(self, comm, size, clip_norm, noise_multiplier / 2, *args, **options)

    monkeypatch.setattr(PrivateStep, "__init__", broken)


def clip_to_twice_the_norm(monkeypatch):
    twice = property(lambda rule: _core.ClipRule([2 * n for n in rule.norms], rule.stability))
    monkeypatch.setattr(ClipRule, "core", twice)


@pytest.mark.parametrize("fault", [halve_the_noise, clip_to_twice_the_norm])
def test_a_broken_build_is_found_out(fault, monkeypatch, tmp_path, capsys):
    fault(monkeypatch)
    code, record = run(monkeypatch, tmp_path / "audit.json")
    assert code == 1
    assert record["lower_bound"] > record["epsilon"]
    assert "does not hold" in capsys.readouterr().err
