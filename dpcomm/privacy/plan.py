"""What is promised about the records, in one value that sampler, clip, noise and accountant share.

A guarantee breaks where its parts do not fit each other: batches that are drawn in another way than
they are accounted for, noise for another norm than the one clipped to, ranks that follow different
plans. So there is one plan; it is checked when it is made and compared on every rank.
"""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from dpcomm import accounting
from dpcomm._core import MismatchError, UsageError
from dpcomm.comm import gathered_bytes
from dpcomm.privacy.clipping import CLIPPINGS, LEAST, MOST, Adaptive, ClipRule, clip_rule

SECURE = "gaussian, chacha20, fresh key"
UNSAFE = "gaussian, chacha20, unsafe seed"  # for tests: whoever knows the seed can undo the noise


@dataclass(frozen=True)
class Plan:
    """DP-SGD with per-sample clipping: who samples, what bounds a record, what hides it.

    Raises UsageError where a value cannot be, or does not fit the others.
    """

    records: int  # training records over all ranks; public, as is everything here
    sample_rate: float  # the chance of each record to be in a batch
    steps: int  # how many are planned; what was spent is the ledger's to say
    clip_norm: float  # no record moves the sum by more, in L2 norm; the first norm of adaptive ones
    noise_multiplier: float  # standard deviation of the noise over the clip norm
    delta: float
    clipping: str = "flat"  # by one norm, or one a layer; adaptive; automatic (scaled)
    adaptive: Adaptive | None = None  # needed for adaptive clipping, and only then
    truncated_batch_size: int | None = None  # the most records that a step takes of its sample
    sampler: str = "poisson"
    noise: str = SECURE
    accountant: str = "pld"
    neighbouring: str = "add-or-remove-one"
    dataset: str = ""  # checksum of the prepared records

    def __post_init__(self) -> None:
        if self.records < 1:
            raise UsageError(f"records={self.records}: a plan needs at least one record")
        self.spending(self.steps)
        if self.steps < 1:
            raise UsageError(f"steps={self.steps}: a plan needs at least one step")
        if not LEAST <= self.clip_norm < MOST:
            raise UsageError(f"clip_norm={self.clip_norm}: give a norm between 1e-20 and 1e20")
        if self.noise_multiplier == 0:
            raise UsageError("noise_multiplier=0 promises nothing: train without a plan instead")
        if not 0 < self.delta < 1 / self.records:
            raise UsageError(
                f"delta={self.delta} for {self.records} records: give less than one over the "
                f"records, {1 / self.records:.1e}; publishing one whole record costs that much"
            )
        self._refuse("clipping", CLIPPINGS, "these bound what a record moves the sum by")
        if (self.clipping == "adaptive") != (self.adaptive is not None):
            raise UsageError(
                f"clipping={self.clipping!r} with adaptive={self.adaptive}: adaptive clipping, and "
                "it alone, needs the numbers by which it adapts"
            )
        if self.adaptive:
            self.adaptive.gradient_multiplier(self.noise_multiplier)
        if self.truncated_batch_size is not None and self.accountant != "pld":
            raise UsageError(
                f"truncated_batch_size with accountant={self.accountant!r}: only 'pld' accounts "
                "for truncated batches"
            )
        self._refuse("accountant", accounting.ACCOUNTANTS, "they never count less than was spent")
        self._refuse(
            "sampler", ("poisson",), "the accountants analyse batches that each record joins alone"
        )
        self._refuse(
            "neighbouring",
            ("add-or-remove-one",),
            "the clip norm bounds one record's presence; replacing one moves the sum by twice that",
        )
        self._refuse("noise", (SECURE, UNSAFE), "only a secure generator hides a record")

    def _refuse(self, field: str, known: tuple[str, ...], why: str) -> None:
        value = getattr(self, field)
        if value not in known:
            choices = " or ".join(repr(choice) for choice in known)
            raise UsageError(f"{field}={value!r} does not fit: use {choices} ({why})")

    @property
    def expected_batch(self) -> float:
        """Records in a batch on average: a constant, by which sums are divided."""
        return self.sample_rate * self.records

    def epsilon(self) -> float:
        """What all planned steps cost, without what else the ledger holds."""
        spent = [self.spending(self.steps)]
        return accounting.composed_epsilon(spent, self.delta, self.accountant)

    def spending(self, steps: int) -> accounting.Steps:
        """What `steps` steps are to the accountants. Those of an adaptive norm are in it."""
        truncation = {} if self.truncated_batch_size is None else {
            "truncated_batch_size": self.truncated_batch_size, "records": self.records
        }  # fmt: skip
        return accounting.Steps(self.sample_rate, self.noise_multiplier, steps, **truncation)

    def rule(self, layers: int) -> ClipRule:
        """What bounds a gradient of so many layers, at first."""
        return clip_rule(self.clipping, self.clip_norm, layers)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def explain(self) -> str:
        """What is guaranteed, to whom, and under which trust."""
        if self.noise == UNSAFE:
            return "Nothing is guaranteed: the noise is drawn from a seed, for tests."
        paragraphs = (
            f"""Whoever sees the model, and every update that led to it, learns almost nothing about
            whether any one of the {self.records:,} training records was there: whatever they
            conclude is at most exp(ε) times as likely with the record as without it, but for an
            event of chance δ = {self.delta:g}. ε = {accounting.show(self.epsilon())} after
            {self.steps:,} steps, by {self.accountant.upper()} accounting, which never counts less
            than was spent.""",
            f"""How: each step draws each record with chance {self.sample_rate:g}, independently
            (about {self.expected_batch:,.0f} a step{self._explain_truncation()}),
            {self._explain_clipping()} ({self.noise}).""",
            """Trust: the processes of this job see records, and sums before noise. Nobody else may
            see their memory or traffic, nor learn which records a step drew. The unit is one
            record: a person with several is protected less. Public are the number of records and
            this plan. Accuracy on test records is published as it is, outside this promise.""",
        )
        return "\n".join(textwrap.fill(" ".join(text.split()), 100) for text in paragraphs)

    def _explain_truncation(self) -> str:
        if self.truncated_batch_size is None:
            return ""
        return f"; of more than {self.truncated_batch_size:,}, a random so many, which ε counts"

    def _explain_clipping(self) -> str:
        norm, spread = self.clip_norm, self.noise_multiplier * self.clip_norm
        adds = f"and adds noise of standard deviation {spread:g} to the sum"
        if self.clipping == "per_layer":
            return f"clips the part of each layer in its gradient, to norm {norm:g} in all, {adds}"
        if self.clipping == "automatic":
            return f"scales its gradient to a norm just below {norm:g}, {adds}"
        if self.adaptive is None:
            return f"clips its gradient to norm {norm:g}, {adds}"
        multiplier = self.adaptive.gradient_multiplier(self.noise_multiplier)
        share = self.adaptive.target_unclipped_quantile
        return (
            f"clips its gradient to a norm, at first {norm:g}, that follows the length below which "
            f"{share:.0%} of the gradients are, adds noise of {multiplier:g} times the norm to the "
            f"sum, and noise of {self.adaptive.unclipped_num_std:g} to the number of gradients "
            "below it; ε counts both"
        )


def default_delta(records: int) -> float:
    """A power of ten below one half over the records."""
    return 10.0 ** math.floor(math.log10(0.5 / records))


def check_same_plan(plan: Plan | None, comm: Any) -> None:
    """Compares the plans of all ranks, None where a rank trains without privacy.

    Collective. Raises MismatchError, on every rank, with the fields that differ and who has which.
    """
    check_same(plan.to_dict() if plan else {"private": False}, comm)


def check_same(values: dict[str, Any], comm: Any) -> None:
    """Compares what all ranks are to agree on, by its names; values are those of JSON.

    Collective. Raises MismatchError, on every rank, with the values that differ and who has which.
    """
    of_ranks = [json.loads(text) for text in gathered_bytes(comm, json.dumps(values).encode())]
    first = of_ranks[0]
    differing = []
    for rank, other in enumerate(of_ranks):
        for name in sorted(first.keys() | other.keys()):
            here, there = first.get(name, "absent"), other.get(name, "absent")
            if here != there:
                differing.append(f"{name} is {here} on rank 0, {there} on rank {rank}")
    if differing:
        raise MismatchError(
            f"rank {comm.rank}/{comm.size}: the ranks follow different privacy plans: "
            + "; ".join(differing[:8])
            + ". Fix: start every rank with the same flags and the same data"
        )
