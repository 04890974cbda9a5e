"""Per-layer, automatic and adaptive clipping: what they sum, what bounds it, what it costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from groups import results, run_threads
from scipy import stats
from test_mlp import ISAS, Case, chain

import dpcomm
from dpcomm import PrivateStep, UsageError, _core
from dpcomm.ghost import Formed, clip_parts, outer_products
from dpcomm.privacy.clipping import Adaptive, ClipRule, Seen, as_rule, clip_rule, seen

LAYERS = chain([9, 20, 8, 3], "tanh")
SIZES = [(x.inputs + x.bias) * x.outputs for x in LAYERS]


def by_hand(gradients, rule):
    """Clipped [B, P], each layer's columns by its own norm if there are several. float64."""
    edges = np.cumsum(SIZES)[:-1] if len(rule.norms) > 1 else []
    parts = []
    for part, norm in zip(np.split(gradients, edges, axis=1), rule.norms, strict=True):
        lengths = np.linalg.norm(part, axis=1)
        if rule.stability:
            factors = norm / (lengths + rule.stability)
        else:
            factors = np.minimum(1, norm / np.maximum(lengths, 1e-300))
        parts.append(factors[:, None] * part)
    return np.concatenate(parts, axis=1)


@pytest.fixture(scope="module")
def case():
    return Case(LAYERS, "cross_entropy", 70)


@pytest.fixture(scope="module")
def gradients(case):
    return case.microbatches()[0]


def rules(gradients):
    clip_norm = float(np.median(np.linalg.norm(gradients, axis=1)))
    uneven = tuple(float(np.median(np.linalg.norm(part, axis=1)))
                   for part in np.split(gradients, np.cumsum(SIZES)[:-1], axis=1))  # fmt: skip
    return {
        "per layer": clip_rule("per_layer", clip_norm, len(LAYERS)),
        "a norm for each": ClipRule(uneven),
        "automatic": clip_rule("automatic", clip_norm, len(LAYERS)),
        "automatic per layer": ClipRule(uneven, 0.01),
    }


NAMES = ["per layer", "a norm for each", "automatic", "automatic per layer"]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
def test_the_native_sum_is_that_of_the_rule(case, gradients, name, isa):
    rule = rules(gradients)[name]
    total, norms, _, _ = case.run(rule, isa=isa)
    clipped = by_hand(gradients, rule)
    error = np.linalg.norm(total - clipped.sum(0))
    assert error < 1e-6 * np.linalg.norm(abs(clipped).sum(0))
    assert np.allclose(norms, np.linalg.norm(gradients, axis=1), rtol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_parts_in_torch_sum_to_the_same(gradients, name):
    rule = rules(gradients)[name]
    rows = torch.from_numpy(gradients).split(SIZES, 1)
    parts = [Formed([row]) for row in rows]
    clipped = clip_parts(parts, rule, range(len(parts)))
    total = torch.cat([sums for (sums,) in clipped.sums]).numpy()
    by_sample = by_hand(gradients, rule)
    error = np.linalg.norm(total - by_sample.sum(0))
    assert error < 1e-6 * np.linalg.norm(abs(by_sample).sum(0))
    assert clipped.sensitivity == rule.sensitivity


@pytest.mark.parametrize("name", NAMES)
def test_no_sample_adds_more_than_the_sensitivity(case, gradients, name):
    """In float64 and without tolerance; each layer no more than its own norm."""
    rule = rules(gradients)[name]
    tight = 0.0
    for i in range(case.batch):
        one = Case.__new__(Case)
        one.__dict__ = case.__dict__ | {"x": case.x[i : i + 1], "t": case.t[i : i + 1], "batch": 1}
        total = one.run(rule)[0].astype(np.float64)
        parts = np.split(total, np.cumsum(SIZES)[:-1]) if len(rule.norms) > 1 else [total]
        for part, norm in zip(parts, rule.norms, strict=True):
            assert np.linalg.norm(part) <= norm
            tight = max(tight, np.linalg.norm(part) / norm)
        assert np.linalg.norm(total) <= rule.sensitivity
    assert tight > (0.5 if rule.stability else 1 - 1e-6)


def test_a_sample_that_is_not_finite_in_one_layer_adds_nothing_in_any(case, gradients):
    rule = rules(gradients)["per layer"]
    broken = Case(LAYERS, "cross_entropy", 70)
    broken.x[5, 3] = math.inf
    total, _, _, nonfinite = broken.run(rule)
    rest = np.delete(by_hand(gradients, rule), 5, axis=0)
    assert nonfinite == 1
    assert np.linalg.norm(total - rest.sum(0)) < 1e-6 * np.linalg.norm(abs(rest).sum(0))


def test_the_norms_of_layers_make_up_the_clip_norm():
    for layers in range(1, 40):
        rule = clip_rule("per_layer", 0.7, layers)
        exact = math.sqrt(math.fsum(norm**2 for norm in rule.norms))
        assert exact <= rule.sensitivity <= 0.7 * (1 + 1e-15)


def test_linear_layers_scaled_automatically():
    a, g = torch.randn(6, 5), torch.randn(6, 3) * torch.logspace(-9, 9, 6).unsqueeze(1)
    clipped = clip_parts([outer_products(a, g, False)], ClipRule((2.0,), 0.01))
    rows = torch.einsum("bo,bd->bod", g.double(), a.double()).flatten(1)
    lengths = rows.norm(dim=1, keepdim=True)
    expected = (2.0 / (lengths + 0.01) * rows).sum(0)
    torch.testing.assert_close(
        clipped.sums[0][0].flatten().double(), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("norms", "stability", "message"),
    [
        ((), 0.0, "clip_norm="),
        ((1.0, 0.0), 0.0, r"clip_norm=1\.0, 0\.0"),
        ((1.0,), -1.0, "stability"),
    ],
)
def test_rules_that_cannot_be_are_refused(norms, stability, message):
    with pytest.raises(UsageError, match=message):
        ClipRule(norms, stability)


def test_a_rule_for_another_number_of_layers_is_refused(case):
    with pytest.raises(UsageError, match="2 clip norms for 3 layers"):
        case.run(ClipRule((1.0, 1.0)))


# Adaptive clipping.

COUNT, SIGMA, EXPECTED = 100_000, 1.5, 50.0
ADAPTIVE = Adaptive(unclipped_num_std=2.5, target_unclipped_quantile=0.6)


def test_gradient_and_number_cost_what_one_release_costs():
    """Both are one Gaussian release of sensitivity 1, in units of each one's noise: squares of
    sensitivity over noise add up."""
    multiplier = ADAPTIVE.gradient_multiplier(SIGMA)
    both = multiplier**-2 + (0.5 / ADAPTIVE.unclipped_num_std) ** 2
    assert SIGMA**-2 * (1 - 1e-14) < both <= SIGMA**-2
    assert multiplier > SIGMA
    with pytest.raises(UsageError, match=r"give more than 0\.75"):
        Adaptive(unclipped_num_std=0.75).gradient_multiplier(SIGMA)


def adapted(comm, norms_of, steps, sigma=SIGMA, seed=1):
    """The clip norms of each step, and the standard noise of the gradients in its own."""
    step = PrivateStep(comm, COUNT, 2.0, sigma, EXPECTED, adaptive=ADAPTIVE, unsafe_seed=seed,
                       no_noise=sigma == 0)  # fmt: skip
    norms, noise = [], []
    for number in range(steps):
        norms.append(step.rule.norms[0])
        buffer = step(np.zeros(COUNT, np.float32))
        noise.append(buffer.astype(np.float64) * EXPECTED / norms[-1])
        step.adapt(seen(norms_of(comm, number), 0, step.rule))
    return np.array(norms), np.concatenate(noise)


def lengths(comm, number, samples=50):
    """This rank's part of the same samples for any number of ranks."""
    drawn = np.random.default_rng(number).uniform(0, 10, samples)
    return drawn[comm.rank :: comm.size]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_noise_follows_the_norm_and_is_the_same_at_any_number_of_ranks(size):
    outcomes = results(run_threads(size, lambda comm: adapted(comm, lengths, 10)))
    norms, noise = outcomes[0]
    for others, other_noise in outcomes[1:]:
        assert np.array_equal(norms, others), "the clip norm drifts between ranks"
        assert np.array_equal(noise, other_noise)
    assert len(set(norms)) == 10
    standard = noise / ADAPTIVE.gradient_multiplier(SIGMA)
    assert stats.kstest(standard, "norm").pvalue > 0.01
    for wrong in (0.98, 1.02):
        assert stats.kstest(standard * wrong, "norm").pvalue < 1e-6
    ((alone, _),) = results(run_threads(1, lambda comm: adapted(comm, lengths, 10)))
    np.testing.assert_allclose(norms, alone, rtol=1e-6)


def test_the_number_has_its_noise():
    """Of which the norm's moves tell: log(C'/C) = -rate (share + noise / expected - quantile)."""

    def moved(comm):
        return np.diff(np.log(adapted_alone(comm, 2000)))

    def adapted_alone(comm, steps):
        step = PrivateStep(comm, 1, 2.0, SIGMA, EXPECTED, adaptive=ADAPTIVE)
        norms = [step.rule.norms[0]]
        for _ in range(steps):
            step(np.zeros(1, np.float32))
            step.adapt(Seen(samples=50, within=30))
            norms.append(step.rule.norms[0])
        return norms

    (moves,) = results(run_threads(1, moved))
    noise = -moves / ADAPTIVE.clipbound_learning_rate * EXPECTED / ADAPTIVE.unclipped_num_std
    assert stats.kstest(noise, "norm").pvalue > 1e-4


def test_the_norm_settles_at_the_quantile():
    ((norms, _),) = results(run_threads(1, lambda comm: adapted(comm, lengths, 150, sigma=0.0)))
    assert np.mean(norms[50:]) == pytest.approx(6.0, rel=0.05)


def test_a_step_is_adapted_to_once():
    def body(comm):
        step = PrivateStep(comm, 3, 1.0, SIGMA, EXPECTED, adaptive=ADAPTIVE)
        step(np.zeros(3, np.float32))
        step.adapt(Seen(2, 1))
        with pytest.raises(UsageError, match="has followed this step already"):
            step.adapt(Seen(2, 1))
        fixed = PrivateStep(comm, 3, 1.0, SIGMA, EXPECTED)
        fixed.adapt(Seen(2, 1))
        assert fixed.rule == ClipRule((1.0,))
        with pytest.raises(UsageError, match="one for the whole gradient"):
            PrivateStep(comm, 3, ClipRule((1.0, 1.0)), SIGMA, EXPECTED, adaptive=ADAPTIVE)

    results(run_threads(1, body))


def test_the_exponential_is_rounded_rightly_on_any_host():
    norm = ADAPTIVE.next_norm(2.0, 0.1)
    assert norm == pytest.approx(2 * math.exp(0.2 * 0.5), rel=1e-15)
    assert ADAPTIVE.next_norm(1e20, -1e6) == 1e20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_unclipped_quantile": 1.0}, "give a share"),
        ({"clipbound_learning_rate": 0.0}, "give a positive number"),
        ({"unclipped_num_std": math.inf}, "a twentieth of the expected batch"),
    ],
)
def test_adaptive_numbers_that_cannot_be_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        Adaptive(**{"unclipped_num_std": 1.0} | change)


def test_the_public_functions_take_a_norm():
    assert dpcomm.clip_linear(torch.ones(1, 2), torch.ones(1, 2), 0.5).sensitivity == 0.5
    assert isinstance(ClipRule((1.0,)).core, _core.ClipRule)


def test_a_rule_follows_an_array_that_changes() -> None:
    norm = torch.tensor(1.0)
    assert as_rule(norm).norms == (1.0,)  # type: ignore[arg-type]
    norm.fill_(0.5)
    assert as_rule(norm).norms == (0.5,)  # type: ignore[arg-type]
