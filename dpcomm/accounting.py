"""What training costs in privacy: ε at a given δ, by the `dp-accounting` library.

Every estimate is pessimistic: ε is never below the loss that was incurred. The neighbouring
relation is add-or-remove-one-record, the one under which Poisson sampling is analysed. The default
accountant composes privacy loss distributions ("pld"; Koskela, Jälkö, Honkela 2020, with the
discretisation of Doroshenko et al. 2022); "rdp" composes Rényi divergences (Mironov, Talwar, Zhang
2019), which is faster and looser.

Batches may be truncated: of a Poisson sample that is too large, a random subset is taken. A record
then also decides whether another one is left out, which costs more than the sample alone
(arXiv:2508.15089, as dp-accounting's TruncatedSubsampledGaussianDpEvent); "pld" accounts for it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from dpcomm._core import UsageError

ACCOUNTANTS = ("pld", "rdp")


@dataclass(frozen=True)
class Steps:
    """Steps of DP-SGD: a Poisson sample of the records, clipped, summed, with Gaussian noise."""

    sample_rate: float  # the chance of each record to be in a batch
    noise_multiplier: float  # standard deviation of the noise over the clip norm
    count: int
    truncated_batch_size: int | None = None  # the most records that are taken of a sample
    records: int | None = None  # that there are; needed where batches are truncated

    def __post_init__(self) -> None:
        if self.truncated_batch_size is not None:
            if self.truncated_batch_size < 1:
                raise UsageError(
                    f"truncated_batch_size={self.truncated_batch_size}: give at least 1"
                )
            if self.records is None or self.records < 1:
                raise UsageError(
                    f"truncated_batch_size with records={self.records}: give how many there are"
                )
        if not 0 < self.sample_rate <= 1:
            raise UsageError(f"sample_rate={self.sample_rate} is not a probability: give 0 < q ≤ 1")
        if not 0 <= self.noise_multiplier < math.inf:
            raise UsageError(f"noise_multiplier={self.noise_multiplier}: give a finite number ≥ 0")
        if self.count < 0:
            raise UsageError(f"steps={self.count} is negative: give the number of steps taken")


@dataclass(frozen=True)
class Release:
    """Anything else that was published about the records, known only to be (ε, δ)-private."""

    epsilon: float
    delta: float = 0.0

    def __post_init__(self) -> None:
        if not self.epsilon >= 0 or not 0 <= self.delta < 1:
            raise UsageError(
                f"a release with epsilon={self.epsilon}, delta={self.delta} cannot be: "
                "give ε ≥ 0 and 0 ≤ δ < 1"
            )


def epsilon(
    sample_rate: float,
    noise_multiplier: float,
    steps: int,
    delta: float,
    accountant: str = "pld",
    *,
    truncated_batch_size: int | None = None,
    records: int | None = None,
) -> float:
    """ε at `delta` of `steps` steps; infinite without noise.

    Raises UsageError for a rate, a multiplier, a δ or an accountant that cannot be.
    """
    spent = Steps(sample_rate, noise_multiplier, steps, truncated_batch_size, records)
    return composed_epsilon([spent], delta, accountant)


def composed_epsilon(
    spent: Iterable[Steps | Release], delta: float, accountant: str = "pld"
) -> float:
    """ε at `delta` of everything in `spent` together, in whatever order it was released."""
    _check(delta, accountant)
    steps: dict[Steps, int] = {}  # equal steps compose at once: far faster
    releases = []
    for part in spent:
        if isinstance(part, Release):
            releases.append(part)
        elif part.count:
            one = replace(part, count=1)
            steps[one] = steps.get(one, 0) + part.count
    if any(one.noise_multiplier == 0 for one in steps):
        return math.inf
    if accountant == "rdp":
        return _rdp(steps, releases, delta)
    return _pld(steps, releases, delta)


def noise_multiplier(
    target_epsilon: float,
    sample_rate: float,
    steps: int,
    delta: float,
    accountant: str = "pld",
    *,
    truncated_batch_size: int | None = None,
    records: int | None = None,
) -> float:
    """The least noise multiplier, to within 1% in ε and on the safe side, that costs ≤ the target.

    Raises UsageError for a target that is not positive, and as `epsilon` does.
    """
    _check(delta, accountant)
    if not 0 < target_epsilon < math.inf:
        raise UsageError(f"target_epsilon={target_epsilon} must be positive and finite")
    one = Steps(sample_rate, 1.0, 1, truncated_batch_size, records)
    if steps == 0:
        raise UsageError("steps=0 spend nothing: give the number of steps to calibrate for")
    import dp_accounting

    def spent(multiplier: float) -> float:
        told = replace(one, noise_multiplier=multiplier, count=steps)
        return composed_epsilon([told], delta, accountant)

    def calibrate(accountant: str, one: Steps, tolerance: float, bracket: Any = None) -> float:
        return dp_accounting.calibrate_dp_mechanism(
            _fresh(accountant),
            lambda multiplier: _event(replace(one, noise_multiplier=multiplier), steps),
            target_epsilon,
            delta,
            bracket,
            tol=tolerance,
        )

    upper = calibrate("rdp", Steps(sample_rate, 1.0, 1), 1e-4)
    if accountant == "rdp":
        spent(upper)  # which refuses what it cannot account for
        return upper
    # RDP's answer is quick and, where no batch is truncated, an upper bound; near it PLD is spared
    # the small multipliers, whose loss distributions are long.
    while spent(upper) > target_epsilon:
        upper *= 1.25
    lower = 0.8 * upper
    while spent(lower) <= target_epsilon:
        lower, upper = 0.8 * lower, lower
    bracket = dp_accounting.ExplicitBracketInterval(lower, upper)
    return calibrate("pld", one, 5e-4 * upper, bracket)


def show(epsilon: float) -> str:
    """ε for people: three decimals, rounded up, since it must not be stated too low."""
    return "∞" if math.isinf(epsilon) else f"{math.ceil(epsilon * 1000) / 1000:.3f}"


def _check(delta: float, accountant: str) -> None:
    if accountant not in ACCOUNTANTS:
        raise UsageError(f"accountant={accountant!r} is unknown: use {' or '.join(ACCOUNTANTS)}")
    if not 0 < delta < 1:
        raise UsageError(f"delta={delta} must lie between 0 and 1, below one over the records")


def _event(one: Steps, count: int) -> Any:
    import dp_accounting

    if one.truncated_batch_size is not None:
        event = dp_accounting.TruncatedSubsampledGaussianDpEvent(
            one.records, one.sample_rate, one.truncated_batch_size, one.noise_multiplier
        )
        return dp_accounting.SelfComposedDpEvent(event, count)
    gaussian = dp_accounting.GaussianDpEvent(one.noise_multiplier)
    sampled = dp_accounting.PoissonSampledDpEvent(one.sample_rate, gaussian)
    return dp_accounting.SelfComposedDpEvent(sampled, count)


def _fresh(accountant: str) -> Any:
    from dp_accounting import pld, rdp

    return {"pld": pld.PLDAccountant, "rdp": rdp.RdpAccountant}[accountant]


def _rdp(steps: dict[Steps, int], releases: list[Release], delta: float) -> float:
    if any(one.truncated_batch_size is not None for one in steps):
        raise UsageError("accountant='rdp' has no analysis of truncated batches: use 'pld'")
    # An (ε, δ) release has no Rényi curve: what it costs is added, by basic composition.
    remaining = delta - sum(release.delta for release in releases)
    if remaining <= 0:
        return math.inf
    total = sum(release.epsilon for release in releases)
    if steps:
        account = _fresh("rdp")()
        for one, count in steps.items():
            account.compose(_event(one, count))
        total += account.get_epsilon(remaining)
    return total


@functools.lru_cache(maxsize=16)  # most of the time of an ε, and the same at every step of a run
def _one_step(one: Steps) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld

    if one.truncated_batch_size is not None:
        return pld.from_truncated_subsampled_gaussian_mechanism(
            one.records, one.sample_rate, one.truncated_batch_size, one.noise_multiplier
        )
    return pld.from_gaussian_mechanism(one.noise_multiplier, sampling_prob=one.sample_rate)


def _pld(steps: dict[Steps, int], releases: list[Release], delta: float) -> float:
    from dp_accounting.pld import common, privacy_loss_distribution

    composed = privacy_loss_distribution.identity()
    for one, count in steps.items():
        composed = composed.compose(_one_step(one).self_compose(count))
    for release in releases:
        one = privacy_loss_distribution.from_privacy_parameters(
            common.DifferentialPrivacyParameters(release.epsilon, release.delta)
        )
        composed = composed.compose(one)
    return composed.get_epsilon_for_delta(delta)
