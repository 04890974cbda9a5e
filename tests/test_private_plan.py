"""make_private by its plan: other clippings, truncated batches, a ledger."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from groups import results, run_threads
from test_private import BATCH, CLIP, NO_NOISE, RECORDS, flat, loss, models, private, train

from dpcomm import MismatchError, UsageError, accounting
from dpcomm.privacy.clipping import ClipRule
from dpcomm.privacy.ledger import AHEAD, Ledger

CLIPPINGS = ["per_layer", "automatic"]
LAYERS = {"mlp": 2, "twice": 2, "tied": 3}  # those that share a weight are one
OF_PARAMETER = {"mlp": [0, 0, 1, 1], "twice": [0, 0, 1, 1], "tied": [0, 0, 1, 1, 1, 2, 2]}


def microbatches(name, clipping, batches):
    """Minus the sum of clipped gradients over the expected batch, one sample at a time, float64."""
    model = models()[name].double()
    total, clipped, norms = 0.0, 0, 0
    for x, y in batches:
        for sample, target in zip(x.double(), y.double(), strict=True):
            gradients = torch.autograd.grad(
                loss(model(sample[None]), target[None]), list(model.parameters())
            )
            flattened = [g.flatten() for g in gradients]
            if clipping == "automatic":
                length = float(torch.cat(flattened).norm())
                factors = [CLIP / (length + 0.01)] * len(flattened)
            else:
                groups = OF_PARAMETER[name]
                squares = [
                    sum(float(g.square().sum()) for g, of in zip(flattened, groups, strict=True)
                        if of == layer)
                    for layer in range(LAYERS[name])
                ]  # fmt: skip
                share = CLIP / math.sqrt(LAYERS[name])
                factors = [min(1.0, share / math.sqrt(squares[of])) for of in groups]
                clipped += sum(f < 1 for f in factors)
                norms += len(factors)
            total = total + torch.cat([f * g for f, g in zip(factors, flattened, strict=True)])
    assert clipping == "automatic" or 0 < clipped < norms, "both kinds of norms are there"
    return -total / BATCH


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_step_equals_the_microbatch_loop(name, clipping):
    settings = {"clipping": clipping, "max_physical_batch_size": 15}
    ((change, batches),) = results(
        run_threads(1, lambda comm: train(comm, name=name, **settings, **NO_NOISE))
    )
    expected = microbatches(name, clipping, batches)
    assert float((change.double() - expected).norm() / expected.norm()) < 2e-6


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize("clipping", [*CLIPPINGS, "adaptive"])
def test_any_number_of_ranks_takes_the_same_steps(clipping, size):
    ((alone, _),) = results(run_threads(1, lambda comm: train(comm, 5, clipping=clipping)))
    outcomes = results(run_threads(size, lambda comm: train(comm, 5, clipping=clipping)))
    for change, _ in outcomes:
        assert torch.equal(change, outcomes[0][0])
    torch.testing.assert_close(outcomes[0][0], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("resumed", [False, True])
def test_the_noise_follows_an_adaptive_norm_over_parts_of_batches(size, resumed):
    """Beside a noise of σ = 50 the samples count for little; each step's is that of its norm."""

    def body(comm, seed, saved=None):
        model, optimizer, loader = private(
            comm, clipping="adaptive", noise_multiplier=50.0, unclipped_num_std=40.0,
            max_physical_batch_size=7, unsafe_seed=seed,
        )  # fmt: skip
        if saved:
            optimizer.load_state_dict(saved)
        standard = []
        while len(standard) < 4:
            for x, y in loader:
                before, norm = flat(model), optimizer._hooks.rule.norms[0]
                loss(model(x), y).backward()
                optimizer.step()
                if loader.last_part:
                    standard.append((flat(model) - before) * BATCH / norm)
        assert len({optimizer._hooks.rule.norms[0], norm}) == 2
        return torch.cat(standard), optimizer.state_dict()

    def noise_of(seed):
        saved = None
        if resumed:
            (_, saved), *_ = results(run_threads(3, partial(body, seed=seed)))
            assert saved["clip_norm"] != CLIP
        (noise, _), *_ = results(run_threads(size, partial(body, seed=100 + seed, saved=saved)))
        return noise

    noise = torch.cat([noise_of(seed) for seed in range(2)])
    expected = (50.0**-2 - 80.0**-2) ** -0.5
    assert float(noise.std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * len(noise)))


def test_an_adaptive_norm_settles_where_the_share_is_within():
    def body(comm):
        model, optimizer, loader = private(comm, clipping="adaptive", **NO_NOISE,
                                           target_unclipped_quantile=0.7)  # fmt: skip
        norms = []
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # the same model, so that the quantile stays
        for _ in range(12):
            for x, y in loader:
                loss(model(x), y).backward()
                optimizer.step()
                norms.append(optimizer._hooks.rule.norms[0])
        return norms

    (norms,) = results(run_threads(1, body))
    model, lengths = models()["mlp"], []
    from test_private import dataset

    for x, y in dataset():
        gradients = torch.autograd.grad(loss(model(x[None]), y[None]), list(model.parameters()))
        lengths.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
    within = sum(length <= sum(norms[60:]) / len(norms[60:]) for length in lengths) / RECORDS
    assert within == pytest.approx(0.7, abs=0.06)


def test_an_adaptive_norm_is_part_of_the_optimizers_state():
    def body(comm):
        _, first, _ = private(comm, clipping="adaptive")
        hooks = first._hooks
        first._private_step.rule = hooks.rule = ClipRule((0.123,))
        saved = first.state_dict()
        _, second, _ = private(comm, clipping="adaptive")
        second.load_state_dict(saved)
        return second._hooks.rule.norms, second._private_step.rule.norms

    assert results(run_threads(2, body)) == [((0.123,), (0.123,))] * 2


def test_truncated_batches_are_no_larger_over_all_ranks_and_cost_more():
    def body(comm):
        model, optimizer, loader = private(comm, truncated_batch_size=38)
        sizes = []
        for x, y in loader:
            sizes.append(len(x))
            loss(model(x), y).backward()
            optimizer.step()
        return sizes, optimizer.plan.spending(10)

    (alone, spent), *_ = results(run_threads(1, body))
    spread = results(run_threads(4, body))
    totals = [sum(sizes) for sizes in zip(*(sizes for sizes, _ in spread), strict=True)]
    assert alone == totals
    assert max(totals) == 38 > min(totals)
    epsilon = accounting.composed_epsilon([spent], 1e-3)
    told = {"truncated_batch_size": 38, "records": RECORDS}
    assert epsilon == accounting.epsilon(BATCH / RECORDS, 1.0, 10, 1e-3, **told)
    assert epsilon > accounting.epsilon(BATCH / RECORDS, 1.0, 10, 1e-3)


def test_a_ledger_is_paid_before_each_update_and_counts_what_was_there(tmp_path):
    path = tmp_path / "ledger.jsonl"

    def body(comm, steps):
        model, optimizer, loader = private(comm, ledger=path, unsafe_seed=None, accountant="rdp")
        before = optimizer.get_epsilon(1e-3)
        for _, (x, y) in zip(range(steps), loader, strict=False):
            loss(model(x), y).backward()
            optimizer.step()
        return before, optimizer.get_epsilon(1e-3)

    def epsilon(steps):
        return accounting.epsilon(BATCH / RECORDS, 1.0, steps, 1e-3, "rdp")

    first = results(run_threads(2, lambda comm: body(comm, 3)))
    assert first == [(0.0, epsilon(3))] * 2
    second = results(run_threads(2, lambda comm: body(comm, 4)))
    assert second == [(epsilon(AHEAD), epsilon(AHEAD + 4))] * 2
    ledger = Ledger(path)
    assert [line["kind"] for line in ledger.lines] == ["launch", "steps"] * 2
    assert ledger.epsilon(1e-3, "rdp") == epsilon(2 * AHEAD)


def test_the_plan_is_there_to_be_explained():
    def body(comm):
        _, optimizer, _ = private(comm, unsafe_seed=None, clipping="adaptive", epochs=3)
        return optimizer.plan

    plan = results(run_threads(2, body))[0]
    assert (plan.records, plan.steps, plan.clip_norm) == (RECORDS, 30, CLIP)
    assert "follows the length below which 50% of the gradients are" in plan.explain()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clipping": "layerwise"}, "clipping='layerwise' does not fit: use 'flat'"),
        ({"clipping": "adaptive", "unclipped_num_std": 0.1}, "nothing is left for the gradients"),
        ({"truncated_batch_size": 30, "accountant": "rdp"}, "only 'pld'"),
        ({"truncated_batch_size": 0}, "truncated_batch_size=0"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    (error,) = run_threads(1, lambda comm: private(comm, **settings))
    assert isinstance(error, UsageError)
    assert message in str(error)


def test_ranks_that_clip_otherwise_are_told_so():
    def body(comm):
        private(comm, clipping="flat" if comm.rank else "automatic")

    for error in run_threads(2, body):
        assert isinstance(error, MismatchError)
        assert "clipping is automatic on rank 0, flat on rank 1" in str(error)
