"""What training costs in privacy: ε at a given δ, by the `dp-accounting` library.

Every estimate is pessimistic: ε is never below the loss that was incurred. The neighbouring
relation is add-or-remove-one-record, the one under which Poisson sampling is analysed. The default
accountant composes privacy loss distributions ("pld"; Koskela, Jälkö, Honkela 2020, with the
discretisation of Doroshenko et al. 2022); "rdp" composes Rényi divergences (Mironov, Talwar, Zhang
2019), which is faster and looser.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dpcomm._core import UsageError

ACCOUNTANTS = ("pld", "rdp")


@dataclass(frozen=True)
class Steps:
    """Steps of DP-SGD: a Poisson sample of the records, clipped, summed, with Gaussian noise."""

    sample_rate: float  # the chance of each record to be in a batch
    noise_multiplier: float  # standard deviation of the noise over the clip norm
    count: int

    def __post_init__(self) -> None:
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
) -> float:
    """ε at `delta` of `steps` steps; infinite without noise.

    Raises UsageError for a rate, a multiplier, a δ or an accountant that cannot be.
    """
    return composed_epsilon([Steps(sample_rate, noise_multiplier, steps)], delta, accountant)


def composed_epsilon(
    spent: Iterable[Steps | Release], delta: float, accountant: str = "pld"
) -> float:
    """ε at `delta` of everything in `spent` together, in whatever order it was released."""
    _check(delta, accountant)
    steps: dict[tuple[float, float], int] = {}  # equal steps compose at once: far faster
    releases = []
    for part in spent:
        if isinstance(part, Release):
            releases.append(part)
        elif part.count:
            key = (part.sample_rate, part.noise_multiplier)
            steps[key] = steps.get(key, 0) + part.count
    if any(noise_multiplier == 0 for _, noise_multiplier in steps):
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
) -> float:
    """The least noise multiplier, to within 1% in ε and on the safe side, that costs ≤ the target.

    Raises UsageError for a target that is not positive, and as `epsilon` does.
    """
    _check(delta, accountant)
    if not 0 < target_epsilon < math.inf:
        raise UsageError(f"target_epsilon={target_epsilon} must be positive and finite")
    Steps(sample_rate, 1.0, steps)
    if steps == 0:
        raise UsageError("steps=0 spend nothing: give the number of steps to calibrate for")
    import dp_accounting

    def calibrate(accountant: str, tolerance: float, bracket: Any = None) -> float:
        return dp_accounting.calibrate_dp_mechanism(
            _fresh(accountant),
            lambda multiplier: _event(sample_rate, multiplier, steps),
            target_epsilon,
            delta,
            bracket,
            tol=tolerance,
        )

    upper = calibrate("rdp", 1e-4)
    if accountant == "rdp":
        return upper
    # RDP's answer is quick and an upper bound; near it PLD is spared the small multipliers, whose
    # loss distributions are long.
    lower = 0.8 * upper
    while epsilon(sample_rate, lower, steps, delta) <= target_epsilon:
        lower, upper = 0.8 * lower, lower
    return calibrate("pld", 5e-4 * upper, dp_accounting.ExplicitBracketInterval(lower, upper))


def show(epsilon: float) -> str:
    """ε for people: three decimals, rounded up, since it must not be stated too low."""
    return "∞" if math.isinf(epsilon) else f"{math.ceil(epsilon * 1000) / 1000:.3f}"


def _check(delta: float, accountant: str) -> None:
    if accountant not in ACCOUNTANTS:
        raise UsageError(f"accountant={accountant!r} is unknown: use {' or '.join(ACCOUNTANTS)}")
    if not 0 < delta < 1:
        raise UsageError(f"delta={delta} must lie between 0 and 1, below one over the records")


def _event(sample_rate: float, noise_multiplier: float, count: int) -> Any:
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(noise_multiplier)
    sampled = dp_accounting.PoissonSampledDpEvent(sample_rate, gaussian)
    return dp_accounting.SelfComposedDpEvent(sampled, count)


def _fresh(accountant: str) -> Any:
    from dp_accounting import pld, rdp

    return {"pld": pld.PLDAccountant, "rdp": rdp.RdpAccountant}[accountant]


def _rdp(steps: dict[tuple[float, float], int], releases: list[Release], delta: float) -> float:
    # An (ε, δ) release has no Rényi curve: what it costs is added, by basic composition.
    remaining = delta - sum(release.delta for release in releases)
    if remaining <= 0:
        return math.inf
    total = sum(release.epsilon for release in releases)
    if steps:
        account = _fresh("rdp")()
        for (rate, multiplier), count in steps.items():
            account.compose(_event(rate, multiplier, count))
        total += account.get_epsilon(remaining)
    return total


@functools.lru_cache(maxsize=16)  # most of the time of an ε, and the same at every step of a run
def _one_step(rate: float, multiplier: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(multiplier, sampling_prob=rate)


def _pld(steps: dict[tuple[float, float], int], releases: list[Release], delta: float) -> float:
    from dp_accounting.pld import common, privacy_loss_distribution

    composed = privacy_loss_distribution.identity()
    for (rate, multiplier), count in steps.items():
        composed = composed.compose(_one_step(rate, multiplier).self_compose(count))
    for release in releases:
        one = privacy_loss_distribution.from_privacy_parameters(
            common.DifferentialPrivacyParameters(release.epsilon, release.delta)
        )
        composed = composed.compose(one)
    return composed.get_epsilon_for_delta(delta)
