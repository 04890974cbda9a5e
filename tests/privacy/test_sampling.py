from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpcomm import _core
from dpcomm.privacy.sampling import poisson_sample, truncated_sample

KEY = bytes(range(32))
ISAS = _core.noise_isas()


def plainly(step: int, rate: float, block: int) -> list[int]:
    """The sample of one block of 16384 ids, a draw at a time, with the logarithms of libm."""
    lam = -math.log1p(-rate) * (1 - 2**-32)
    taken, at = [], 0
    for counter in itertools.count(block << 12):
        tagged = counter | 1 << 61  # the stream of sampling
        rows = [tagged & 0xFFFFFFFF, tagged >> 32, step & 0xFFFFFFFF, step >> 32]
        words = _core.chacha20_block(KEY, rows)
        for low, high in zip(words[::2], words[1::2], strict=True):
            v = low | high << 32
            e = -math.log1p(-v * 2**-64) if v < 2**63 else -math.log((2**64 - v) * 2**-64)
            at += int(e / lam)
            if at >= 16384:
                return taken
            taken.append((block << 14) + at)
            at += 1
    raise AssertionError


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rate", [1e-5, 0.0034, 0.3])
def test_every_width_draws_what_a_plain_loop_draws(isa: str, rate: float) -> None:
    for step, block in [(0, 0), (7, 3), (2**33 + 1, 2**40)]:
        ids = _core.poisson_sample(KEY, step, rate, block << 14, (block + 1) << 14, isa=isa)
        assert ids.tolist() == plainly(step, rate, block)


@pytest.mark.parametrize("isa", ISAS)
def test_every_width_takes_the_same_millions(isa: str) -> None:
    ids = _core.poisson_sample(KEY, 3, 0.3, 5, 10_000_000, isa=isa)
    assert (ids == _core.poisson_sample(KEY, 3, 0.3, 5, 10_000_000, isa="generic")).all()


@settings(deadline=None, max_examples=100)
@given(
    begin=st.integers(0, 60_000),
    count=st.integers(0, 60_000),
    rate=st.sampled_from([1e-4, 0.013, 0.5, 1.0]),
    cuts=st.lists(st.floats(0, 1), max_size=7),
)
def test_union_is_the_same_for_any_partition(
    begin: int, count: int, rate: float, cuts: list[float]
) -> None:
    edges = [begin, *sorted(begin + int(cut * count) for cut in cuts), begin + count]
    parts = [poisson_sample(KEY, 5, rate, a, b) for a, b in itertools.pairwise(edges)]
    assert (
        np.concatenate(parts).tolist()
        == poisson_sample(KEY, 5, rate, begin, begin + count).tolist()
    )


def test_ids_ascend_and_stay_in_range() -> None:
    ids = poisson_sample(KEY, 0, 0.1, 12_345, 99_999)
    assert ids.dtype == np.int64
    assert ids[0] >= 12_345
    assert ids[-1] < 99_999
    assert (np.diff(ids) > 0).all()


@pytest.mark.parametrize("rate", [1e-5, 0.003, 0.3, 0.97])
def test_sample_sizes_are_binomial(rate: float) -> None:
    records, steps = 50_000, 400
    sizes = np.array([len(poisson_sample(KEY, step, rate, 0, records)) for step in range(steps)])
    mean, variance = records * rate, records * rate * (1 - rate)
    assert abs(sizes.mean() - mean) < 5 * math.sqrt(variance / steps)
    assert 0.7 < sizes.var() / variance < 1.4


def test_every_place_is_taken_equally_often() -> None:
    """Among others the first and the last of a block of ids."""
    records, steps, rate = 16384 * 2 + 100, 3000, 0.05
    counts = np.zeros(records)
    for step in range(steps):
        counts[poisson_sample(KEY, step, rate, 0, records)] += 1
    variance = steps * rate * (1 - rate)
    z = (counts - steps * rate) / math.sqrt(variance)
    assert stats.chi2(records).sf((z**2).sum()) > 1e-4
    for place in (0, 16383, 16384, 32767, 32768):
        assert abs(z[place]) < 5


def test_gaps_are_geometric() -> None:
    rate = 0.02
    gaps = np.diff(poisson_sample(KEY, 1, rate, 0, 10_000_000)) - 1
    few = gaps[gaps < 200]
    expected = stats.geom(rate, loc=-1).pmf(np.arange(200)) * len(gaps)
    observed = np.bincount(few, minlength=200)
    assert stats.chi2(200).sf(((observed - expected) ** 2 / expected).sum()) > 1e-4


def test_steps_and_keys_are_independent() -> None:
    records, rate = 1_000_000, 0.1
    taken = []
    for key, step in [(KEY, 0), (KEY, 1), (KEY, 2**32), (b"\1" + KEY[1:], 0)]:
        mask = np.zeros(records)
        mask[poisson_sample(key, step, rate, 0, records)] = 1
        taken.append(mask)
    correlations = np.corrcoef(taken)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 5 / math.sqrt(records)


def test_rates_of_nothing_and_everything() -> None:
    assert poisson_sample(KEY, 0, 0.0, 0, 1000).tolist() == []
    assert poisson_sample(KEY, 0, 1.0, 20_000, 40_000).tolist() == list(range(20_000, 40_000))
    assert poisson_sample(KEY, 0, 0.5, 7, 7).tolist() == []


def test_ids_may_be_large() -> None:
    begin = 2**61 - 1000
    ids = poisson_sample(KEY, 0, 0.5, begin, 2**61 + 1000)
    assert abs(len(ids) - 1000) < 150


@pytest.mark.parametrize(
    ("rate", "begin", "end"),
    [(-0.1, 0, 1), (1.1, 0, 1), (math.nan, 0, 1), (1e-12, 0, 1), (0.5, -1, 1), (0.5, 2, 1)],
)
def test_bad_arguments_are_refused(rate: float, begin: int, end: int) -> None:
    with pytest.raises(ValueError, match=r"sample rate|record ids"):
        poisson_sample(KEY, 0, rate, begin, end)


def test_a_truncated_sample_is_the_same_for_any_partition() -> None:
    for step in range(50):
        whole = truncated_sample(KEY, step, 0.1, 1000, 95, 0, 1000)
        cuts = [0, 1, 400, 400, 999, 1000]
        parts = [truncated_sample(KEY, step, 0.1, 1000, 95, a, b)
                 for a, b in itertools.pairwise(cuts)]  # fmt: skip
        assert np.array_equal(np.concatenate(parts), whole)
        sample = poisson_sample(KEY, step, 0.1, 0, 1000)
        assert len(whole) == min(len(sample), 95)
        assert set(whole) <= set(sample)
        assert (np.diff(whole) > 0).all()


def test_each_record_stays_in_a_truncated_sample_equally_often() -> None:
    taken = np.zeros(40)
    for step in range(6000):
        taken[truncated_sample(KEY, step, 0.5, 40, 10, 0, 40)] += 1
    assert stats.chisquare(taken).pvalue > 1e-3
