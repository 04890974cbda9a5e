"""How a record's gradient is bounded: by one norm, by one a layer, by a norm that follows a private
quantile, or by scaling every gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from dpcomm import _core
from dpcomm._core import UsageError

CLIPPINGS = ("flat", "per_layer", "adaptive", "automatic")
_STABILITY = 0.01  # of automatic clipping, which Bu et al. find robust
MOST, LEAST = 1e20, 1e-20  # norms whose squares are normal numbers, in float64 and float32


@dataclass(frozen=True)
class ClipRule:
    """norms: one for the whole gradient, or one for each layer's part of it.
    stability: above 0, each gradient g is scaled to the length norm |g| / (|g| + stability), which
        no gradient of any length moves the sum by more than its norm in (Bu et al., "Automatic
        Clipping: Differentially Private Deep Learning Made Easier and Stronger", NeurIPS 2023).

    Raises UsageError for numbers that cannot be.
    """

    norms: tuple[float, ...]
    stability: float = 0.0

    def __post_init__(self) -> None:
        if not self.norms or not all(0 < norm < math.inf for norm in self.norms):
            norms = ", ".join(map(str, self.norms))
            raise UsageError(f"clip_norm={norms}: give a positive, finite norm")
        if not 0 <= self.stability < math.inf:
            raise UsageError(f"stability={self.stability}: give a finite number, 0 or more")

    @property
    def sensitivity(self) -> float:
        """The most that adding or removing one record moves the sum, in L2 norm."""
        if len(self.norms) == 1:
            return self.norms[0]
        return math.nextafter(math.hypot(*self.norms), math.inf)

    @cached_property
    def core(self) -> _core.ClipRule:
        return _core.ClipRule(self.norms, self.stability)

    def of(self, layers: list[int]) -> ClipRule:
        """The rule for some of the layers alone."""
        if len(self.norms) == 1:
            return self
        return replace(self, norms=tuple(self.norms[layer] for layer in layers))


def as_rule(clip_norm: float | ClipRule) -> ClipRule:
    return clip_norm if isinstance(clip_norm, ClipRule) else _flat(float(clip_norm))


# By the number, never by what held it, which may be an array that changes.
@lru_cache(maxsize=64)  # a kernel's call takes little longer than making a rule
def _flat(clip_norm: float) -> ClipRule:
    return ClipRule((clip_norm,))


def clip_rule(clipping: str, clip_norm: float, layers: int) -> ClipRule:
    """The first rule of a clipping by its name, of sensitivity `clip_norm`.

    Per layer, each of them has the norm clip_norm / √layers (McMahan et al., "Learning
    differentially private recurrent language models", ICLR 2018).
    """
    if clipping == "per_layer":
        return ClipRule((clip_norm / math.sqrt(layers),) * layers)
    return ClipRule((clip_norm,), _STABILITY if clipping == "automatic" else 0.0)


@dataclass(frozen=True)
class Adaptive:
    """A clip norm that follows a quantile of the gradients' norms (Andrew, Thakkar, McMahan,
    Ramaswamy, "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021).

    Each step also releases how many samples were within the norm, less one half for each, so that
    a record moves the number by one half at most, with noise of its own; and multiplies the norm by
    exp(-rate (share - quantile)).

    target_unclipped_quantile: the share of samples that is to stay within the norm.
    clipbound_learning_rate: the rate.
    unclipped_num_std: standard deviation of the noise on the number; the paper takes a twentieth of
        the expected batch.

    Raises UsageError for numbers that cannot be.
    """

    unclipped_num_std: float
    target_unclipped_quantile: float = 0.5
    clipbound_learning_rate: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.target_unclipped_quantile < 1:
            raise UsageError(
                f"target_unclipped_quantile={self.target_unclipped_quantile}: give a share of the "
                "samples, as 0.5"
            )
        if not 0 < self.clipbound_learning_rate < math.inf:
            raise UsageError(
                f"clipbound_learning_rate={self.clipbound_learning_rate}: give a positive number, "
                "as 0.2"
            )
        if not 0 < self.unclipped_num_std < math.inf:
            raise UsageError(
                f"unclipped_num_std={self.unclipped_num_std}: give a positive number, as a "
                "twentieth of the expected batch"
            )

    def gradient_multiplier(self, noise_multiplier: float) -> float:
        """The gradients' noise multiplier with which they and the number cost together what
        `noise_multiplier` costs alone: (noise_multiplier⁻² - (2 unclipped_num_std)⁻²)^-½, Theorem 1
        of the paper.

        Raises UsageError where the number alone would cost as much.
        """
        if noise_multiplier == 0:
            return 0.0
        left = noise_multiplier**-2 - (2 * self.unclipped_num_std) ** -2
        if left <= 0:
            raise UsageError(
                f"noise_multiplier={noise_multiplier} with unclipped_num_std="
                f"{self.unclipped_num_std}: nothing is left for the gradients; give more than "
                f"{noise_multiplier / 2:g} for the latter"
            )
        return left**-0.5 * (1 + 2**-50)  # rounded up: never less noise than was asked for

    def next_norm(self, norm: float, share: float) -> float:
        """The clip norm after a step in which, by the noisy count, `share` were within `norm`."""
        from decimal import Context, Decimal

        # Decimal's exponential is rounded rightly, so that hosts of different C libraries agree.
        excess = self.clipbound_learning_rate * (self.target_unclipped_quantile - share)
        return min(max(norm * float(Decimal(excess).exp(Context(prec=20))), LEAST), MOST)


@dataclass(frozen=True)
class Seen:
    """What a rank saw of its samples. Un-noised: not for publishing."""

    samples: int = 0
    within: int = 0  # of a norm of at most the rule's first
    nonfinite: int = 0  # left out for a NaN or an infinity

    def __add__(self, other: Seen) -> Seen:
        return Seen(
            self.samples + other.samples,
            self.within + other.within,
            self.nonfinite + other.nonfinite,
        )


def seen(norms: Any, nonfinite: int, rule: ClipRule) -> Seen:
    """Of samples with these norms, an array [B]."""
    return Seen(len(norms), int((norms <= rule.norms[0]).sum()), nonfinite)
