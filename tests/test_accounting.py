"""ε against published values, against hand composition, and from the safe side."""

from __future__ import annotations

import math

import pytest

from dpcomm import accounting
from dpcomm.accounting import Release, Steps

# (sample rate, noise multiplier, steps, δ), ε by PLD, ε by RDP: published by the dp-accounting and
# Opacus projects for these settings, the middle one the MNIST tutorial of TensorFlow Privacy.
PUBLISHED = [
    ((0.01, 4.0, 10_000, 1e-5), 0.947, 1.0355),
    ((256 / 60_000, 1.1, 14_040, 1e-5), 2.380, 2.594),
    ((0.04, 1.5, 2_250, 1e-5), 6.769, 7.329),
]


@pytest.mark.parametrize(("setting", "pld", "rdp"), PUBLISHED)
def test_epsilon_agrees_with_published_values(setting, pld, rdp):
    assert accounting.epsilon(*setting) == pytest.approx(pld, abs=6e-4)
    assert accounting.epsilon(*setting, accountant="rdp") == pytest.approx(rdp, abs=6e-4)


def test_epsilon_of_one_gaussian_release_is_never_below_the_exact_one():
    """Balle and Wang (2018), theorem 8: δ(ε) = Φ(1/2σ − εσ) − e^ε Φ(−1/2σ − εσ)."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    sigma, delta = 2.0, 1e-5

    def excess(epsilon):
        shift = epsilon * sigma
        left, right = norm.cdf(0.5 / sigma - shift), norm.cdf(-0.5 / sigma - shift)
        return left - math.exp(epsilon) * right - delta

    exact = brentq(excess, 0.01, 20)
    assert exact <= accounting.epsilon(1.0, sigma, 1, delta) <= exact * 1.001
    assert exact <= accounting.epsilon(1.0, sigma, 1, delta, accountant="rdp")


@pytest.mark.parametrize("accountant", accounting.ACCOUNTANTS)
@pytest.mark.parametrize(
    ("target", "rate", "steps", "delta"),
    [(1.0, 0.01, 10_000, 1e-5), (3.0, 0.02, 500, 1e-6), (8.0, 0.01, 1_000, 1e-6)],
)
def test_calibration_spends_the_target_to_within_one_percent_and_never_more(
    target, rate, steps, delta, accountant
):
    multiplier = accounting.noise_multiplier(target, rate, steps, delta, accountant)
    spent = accounting.epsilon(rate, multiplier, steps, delta, accountant)
    assert 0.99 * target <= spent <= target


@pytest.mark.parametrize("accountant", accounting.ACCOUNTANTS)
def test_parts_of_equal_steps_compose_to_the_whole(accountant):
    parts = [Steps(0.01, 1.2, 300), Steps(0.01, 1.2, 0), Steps(0.01, 1.2, 700)]
    whole = accounting.epsilon(0.01, 1.2, 1000, 1e-6, accountant)
    assert accounting.composed_epsilon(parts, 1e-6, accountant) == whole


@pytest.mark.parametrize("accountant", accounting.ACCOUNTANTS)
def test_every_release_counts(accountant):
    steps = [Steps(0.01, 1.2, 300), Steps(0.02, 2.0, 300)]
    alone = accounting.composed_epsilon(steps, 1e-6, accountant)
    assert alone > accounting.composed_epsilon(steps[:1], 1e-6, accountant)
    with_release = accounting.composed_epsilon([*steps, Release(0.5, 1e-9)], 1e-6, accountant)
    assert alone < with_release <= (alone + 0.5) * 1.001
    assert accounting.composed_epsilon([Release(0.5)], 1e-6, accountant) == pytest.approx(
        0.5, rel=1e-4
    )
    assert accounting.composed_epsilon([], 1e-6, accountant) == 0


@pytest.mark.parametrize("accountant", accounting.ACCOUNTANTS)
def test_no_noise_or_a_spent_delta_is_infinite(accountant):
    assert accounting.epsilon(0.01, 0.0, 1, 1e-6, accountant) == math.inf
    assert accounting.epsilon(0.01, 0.0, 0, 1e-6, accountant) == 0
    assert accounting.composed_epsilon([Release(0.1, 1e-5)], 1e-6, accountant) == math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accounting.epsilon(1.5, 1.0, 10, 1e-5), "sample_rate=1.5"),
        (lambda: accounting.epsilon(0.1, -1.0, 10, 1e-5), "noise_multiplier=-1.0"),
        (lambda: accounting.epsilon(0.1, math.nan, 10, 1e-5), "noise_multiplier=nan"),
        (lambda: accounting.epsilon(0.1, 1.0, -1, 1e-5), "steps=-1"),
        (lambda: accounting.epsilon(0.1, 1.0, 10, 0.0), "delta=0.0"),
        (lambda: accounting.epsilon(0.1, 1.0, 10, 1e-5, "gdp"), "accountant='gdp'"),
        (lambda: accounting.noise_multiplier(0.0, 0.1, 10, 1e-5), "target_epsilon=0.0"),
        (lambda: accounting.noise_multiplier(1.0, 0.1, 0, 1e-5), "steps=0"),
        (lambda: Release(-0.1), "epsilon=-0.1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_truncated_batches_are_dp_accountings_event_and_cost_no_less():
    import dp_accounting
    from dp_accounting import pld

    records, rate, sigma, steps, delta = 1000, 0.05, 1.5, 20, 1e-5
    for most, costlier in [(40, True), (60, True), (500, False)]:
        account = pld.PLDAccountant()
        event = dp_accounting.TruncatedSubsampledGaussianDpEvent(records, rate, most, sigma)
        account.compose(event, steps)
        told = {"truncated_batch_size": most, "records": records}
        epsilon = accounting.epsilon(rate, sigma, steps, delta, **told)
        assert epsilon == pytest.approx(account.get_epsilon(delta), rel=1e-9)
        poisson = accounting.epsilon(rate, sigma, steps, delta)
        assert epsilon > 1.05 * poisson if costlier else epsilon >= poisson * (1 - 1e-6)


def test_steps_of_truncated_and_whole_batches_compose():
    steps = [Steps(0.05, 1.5, 10), Steps(0.05, 1.5, 10, 60, 1000)]
    both = accounting.composed_epsilon(steps, 1e-5)
    assert accounting.composed_epsilon(steps[:1], 1e-5) < both
    with pytest.raises(ValueError, match="no analysis of truncated batches"):
        accounting.composed_epsilon(steps, 1e-5, "rdp")
    with pytest.raises(ValueError, match="give how many there are"):
        Steps(0.05, 1.5, 10, 60)
    with pytest.raises(ValueError, match="truncated_batch_size=0"):
        Steps(0.05, 1.5, 10, 0, 1000)
