"""The private step: the right sum, the right noise, the same bits however it is spread."""

from __future__ import annotations

import math

import numpy as np
import pytest
from groups import all_fail, results, run_threads
from scipy import stats
from test_plan import PLAN

from dpcomm import MismatchError, PrivateStep, UsageError, _core
from dpcomm.privacy.plan import check_same, check_same_plan

# The distance between the distributions of N(0, 1) and N(0, 1.02²) is 0.02 φ(1) = 0.0048. A
# Kolmogorov-Smirnov test of n numbers at 10^-6 rejects distances above 2.69 / √n (Kolmogorov's
# limit), and the measured distance is within 2 / √n of the true one, so n must be a million.
COUNT = 1_000_003
LEVEL = 1e-6


def noisy_mean(comm, sums, algo=None, seed=1, steps=1, **settings):
    settings = {"clip_norm": 2.0, "noise_multiplier": 1.5, "expected_batch": 50.0} | settings
    step = PrivateStep(comm, len(sums), **settings, algo=algo, unsafe_seed=seed)
    for _ in range(steps):
        buffer = np.array(sums, np.float32)
        assert step(buffer) is buffer
    return buffer


def of_all_ranks(size, body):
    """What every rank got, once it is shown that all have the same bits."""
    first, *others = results(run_threads(size, body))
    for other in others:
        np.testing.assert_array_equal(first.view(np.uint32), other.view(np.uint32))
    return first


@pytest.fixture(scope="module")
def noise_of_one_rank():
    return of_all_ranks(1, lambda comm: noisy_mean(comm, np.zeros(COUNT)))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_noise_has_its_standard_deviation_and_the_bits_of_one_rank(size, noise_of_one_rank):
    noise = of_all_ranks(size, lambda comm: noisy_mean(comm, np.zeros(COUNT)))
    standard = noise.astype(np.float64) / (1.5 * 2.0 / 50.0)
    assert stats.kstest(standard, "norm").pvalue > 0.01
    for wrong in (0.98, 1.02):
        assert stats.kstest(standard * wrong, "norm").pvalue < LEVEL
    np.testing.assert_array_equal(noise.view(np.uint32), noise_of_one_rank.view(np.uint32))


@pytest.mark.parametrize("algo", _core.algorithms())
@pytest.mark.parametrize("size", [2, 3, 8])
def test_noise_has_the_same_bits_for_every_schedule(size, algo, noise_of_one_rank):
    # Noise is keyed by the element alone, so a shorter buffer has the beginning of a longer one's.
    noise = of_all_ranks(size, lambda comm: noisy_mean(comm, np.zeros(10_007), algo))
    np.testing.assert_array_equal(noise.view(np.uint32), noise_of_one_rank[:10_007].view(np.uint32))


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_without_noise_it_is_the_sum_over_the_expected_batch(size):
    parts = np.random.default_rng(0).normal(size=(size, 5_003)).astype(np.float32)
    mean = of_all_ranks(
        size, lambda comm: noisy_mean(comm, parts[comm.rank], noise_multiplier=0.0, no_noise=True)
    )
    np.testing.assert_allclose(mean, parts.sum(0, dtype=np.float64) / 50, rtol=1e-5, atol=1e-7)


def test_noise_is_added_to_the_sum_not_to_each_part():
    ones = of_all_ranks(4, lambda comm: noisy_mean(comm, np.full(10_000, 16.0)))
    zeros = of_all_ranks(4, lambda comm: noisy_mean(comm, np.zeros(10_000)))
    np.testing.assert_allclose(ones - zeros, 64 / 50, atol=1e-6)


def test_each_step_and_each_key_draws_other_noise():
    drawn = [
        of_all_ranks(2, lambda comm, s=steps, k=seed: noisy_mean(comm, np.zeros(9_999), None, k, s))
        for steps, seed in [(1, 1), (2, 1), (1, 2), (1, None), (1, None)]
    ]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert abs(stats.pearsonr(one, other).statistic) < 5 / math.sqrt(9_999)


def test_the_key_is_one_for_all_ranks_and_new_for_each():
    steps = [results(run_threads(3, lambda c: PrivateStep(c, 1, 1.0, 1.0, 1.0))) for _ in range(2)]
    hashes = [{step.key_hash for step in ranks} for ranks in steps]
    assert len(hashes[0]) == len(hashes[1]) == 1
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
        ({"clip_norm": math.inf}, "clip_norm=inf"),
        ({"noise_multiplier": -1.0}, "noise_multiplier=-1.0"),
        ({"noise_multiplier": 0.0}, "a step without noise is not private"),
        ({"no_noise": True}, "a step without noise is not private"),
        ({"expected_batch": 0.0}, "sample rate times records"),
        ({"algo": "rings"}, "algo='rings' is unknown"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    (error,) = run_threads(1, lambda comm: noisy_mean(comm, np.zeros(3), **settings))
    assert isinstance(error, UsageError)
    assert message in str(error)


def test_a_buffer_of_another_size_is_refused_and_draws_nothing():
    def body(comm):
        step = PrivateStep(comm, 3, 1.0, 1.0, 1.0)
        with pytest.raises(UsageError, match="a buffer of 2 elements for a step of 3"):
            step(np.zeros(2, np.float32))
        with pytest.raises(ValueError, match="convert it to float32"):
            step(np.zeros(3))
        return step.steps

    assert results(run_threads(1, body)) == [0]


def test_different_plans_are_found_on_every_rank():
    from dataclasses import replace

    plans = [PLAN, PLAN, replace(PLAN, clip_norm=2.0), None]
    for error in run_threads(4, lambda comm: check_same_plan(plans[comm.rank], comm)):
        assert isinstance(error, MismatchError)
        assert "clip_norm is 1.0 on rank 0, 2.0 on rank 2" in str(error)
        assert "on rank 3" in str(error)
    assert results(run_threads(3, lambda comm: check_same_plan(PLAN, comm))) == [None] * 3
    assert results(run_threads(3, lambda comm: check_same_plan(None, comm))) == [None] * 3


def test_what_ranks_must_agree_on_may_be_long():
    def body(comm):
        check_same({"columns": "x" * 5000}, comm)
        check_same({"columns": "x" * (5000 + comm.rank)}, comm)

    all_fail(run_threads(2, body), MismatchError, "columns is xxx")


@pytest.mark.parametrize("algo", [None, "ring", "recursive_doubling"])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("count", [100, 100_000])
def test_a_step_never_meets_a_plain_sum_of_its_length(count, size, algo):
    def body(comm):
        step = PrivateStep(comm, count, 1.0, 1.0, 1.0, algo=algo)
        buffer = np.ones(count, np.float32)
        if comm.rank == 0:
            step(buffer)
        else:
            comm.all_reduce(buffer, algo=algo)
        comm.barrier()  # where a rank that had only to send learns of it

    all_fail(run_threads(size, body, 5), MismatchError, "root 0, epilogue noise)", "root 0)")
