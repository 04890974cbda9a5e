"""An empirical lower bound on ε, from one training run: what `python -m dpcomm.audit` prints.

Canaries are records of which each is there or not by a coin of its own. After the run, those whose
mark on the model is strongest are guessed to have been there, those whose mark is weakest not. No
(ε, δ)-private training lets more than a known number of such guesses be right, so that too many
right ones refute the ε that the accountant promised (Steinke, Nasr, Jagielski, "Privacy Auditing
with One (1) Training Run", NeurIPS 2023).

The audit runs the trainer that `python -m dpcomm.train` runs, on canaries alone. It finds a
sampler, a clip, noise or an accountant that is broken; that it finds nothing proves nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass

import numpy as np

from dpcomm import accounting, launch
from dpcomm._core import UsageError


@dataclass(frozen=True)
class Audit:
    """What was promised, `epsilon` at `delta`, and the least that ε can be, with `confidence`."""

    epsilon: float
    delta: float
    lower_bound: float
    confidence: float
    correct: int
    guesses: int
    canaries: int

    @property
    def refuted(self) -> bool:
        return self.lower_bound > self.epsilon


def lower_bound(
    correct: int, guesses: int, canaries: int, delta: float, confidence: float = 0.95
) -> float:
    """The ε that training has at least, with probability `confidence`.

    Of `canaries` records, each there or not by a fair coin, `guesses` were guessed, and `correct`
    of them rightly. How many to guess must not depend on the outcome. Theorem 5.2 of Steinke,
    Nasr, Jagielski 2023. 0 where nothing is shown.

    Raises UsageError for numbers that cannot be.
    """
    if not 0 <= correct <= guesses <= canaries or guesses == 0:
        raise UsageError(
            f"{correct} of {guesses} guesses right, of {canaries} canaries: give "
            "0 <= correct <= guesses <= canaries, and at least one guess"
        )
    if not 0 <= delta < 1 or not 0 < confidence < 1:
        raise UsageError(f"delta={delta}, confidence={confidence}: give probabilities")
    from scipy.optimize import brentq

    def excess(epsilon: float) -> float:
        return chance(correct, guesses, canaries, epsilon, delta) - (1 - confidence)

    if excess(0.0) >= 0:
        return 0.0
    beyond = 1.0
    while excess(beyond) < 0:
        beyond *= 2
    return float(brentq(excess, 0.0, beyond))


def chance(correct: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """An upper bound on the probability that (ε, δ)-private training lets `correct` or more of
    the guesses be right.

    Under pure ε the right guesses are at most binomial with p = e^ε / (1 + e^ε). δ adds to a tail
    what mass within i guesses below it could be moved there, each at the price of i.
    """
    from scipy.special import expit
    from scipy.stats import binom

    tails = binom.sf(np.arange(correct, -1, -1) - 1, guesses, expit(epsilon))
    if correct == 0:
        return 1.0
    gains = (tails[1:] - tails[0]) / np.arange(1, correct + 1)
    return min(1.0, float(tails[0] + 2 * canaries * delta * gains.max()))


def guess(scores: np.ndarray, present: np.ndarray, guesses: int) -> int:
    """How many guesses are right: the guesses / 2 canaries of the highest score [m] are said to be
    present [m], those of the lowest not."""
    half = guesses // 2
    order = np.argsort(scores, kind="stable")
    return int(np.sum(present[order[len(order) - half :]]) + np.sum(~present[order[:half]]))


def _parse() -> argparse.Namespace:
    p = argparse.ArgumentParser("python -m dpcomm.audit", description=__doc__.split("\n")[0])
    p.add_argument("--noise-multiplier", type=float, default=6.5, help="default 6.5")
    p.add_argument("--sample-rate", type=float, default=0.8, help="default 0.8")
    p.add_argument("--steps", type=int, default=20, help="default 20")
    p.add_argument("--side", type=int, default=200, help="side² canaries; default 200")
    p.add_argument("--confidence", type=float, default=0.95, help="default 0.95")
    p.add_argument("--json", metavar="FILE", help="append the record to this file")
    args = p.parse_args()
    if args.side < 10:
        p.error(f"--side {args.side}: give at least 10, for 100 canaries")
    if not 0 < args.confidence < 1:
        p.error(f"--confidence {args.confidence}: give a probability, as 0.95")
    return args


# Of the canaries, how many are guessed: few enough to be mostly right, enough to show it.
_GUESSED = 0.03


def main() -> int:
    """Runs the audit; 0, or 1 if ε is larger than promised."""
    with launch.one_voice():
        args = _parse()
    comm = launch.init()
    from dpcomm.train.canaries import Canaries

    canaries = Canaries(comm, args.side)
    scores, summary = canaries.train(
        steps=args.steps, sample_rate=args.sample_rate, noise_multiplier=args.noise_multiplier
    )
    if comm.rank != 0:
        return 0
    guesses = 2 * math.ceil(_GUESSED * len(scores) / 2)
    correct = guess(scores, canaries.present, guesses)
    epsilon, delta = summary.epsilon, summary.delta
    assert epsilon is not None  # the run was private, its key secret
    assert delta is not None
    bound = lower_bound(correct, guesses, len(scores), delta, args.confidence)
    audit = Audit(epsilon, delta, bound, args.confidence, correct, guesses, len(scores))
    print(
        f"canaries       {audit.canaries:,}, of which {guesses:,} were guessed, {correct:,} rightly"
    )
    print(f"ε promised     {accounting.show(audit.epsilon)} at δ = {audit.delta:g}")
    print(f"ε at least     {audit.lower_bound:.3f}, with {audit.confidence:.0%} confidence")
    if args.json:
        with open(args.json, "a") as file:
            file.write(json.dumps(asdict(audit)) + "\n")
    if not audit.refuted:
        return 0
    print(
        "dpcomm: the promise does not hold: do not release what this build trains", file=sys.stderr
    )
    return launch.WRONG_RESULT


if __name__ == "__main__":
    sys.exit(main())
