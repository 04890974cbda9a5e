"""Clippings, truncated batches and learning-rate schedules of a training run."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import RATE, SIGMA, TRAIN
from groups import results, run_threads
from test_trainer import one_model_at_a_time, train, weights

from dpcomm import UsageError, accounting
from dpcomm.privacy.ledger import Ledger
from dpcomm.privacy.optimizer import ShardedOptimizer
from dpcomm.train import checkpoint
from dpcomm.train.options import SCHEDULES, parse
from dpcomm.train.schedule import learning_rates
from dpcomm.train.step import Batches
from dpcomm.train.trainer import Trainer

__all__ = ["one_model_at_a_time"]  # a fixture that is used by itself
CLIPPINGS = ["per_layer", "automatic", "adaptive"]


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_the_native_step_clips_as_torch_does_at_any_number_of_ranks(
    options, tmp_path, monkeypatch, clipping
):
    options = replace(options, clipping=clipping, unsafe_seed=3, optimizer="sgd", steps=15, lr=0.5)
    trainer, summary = train(options)
    flat, _ = train(replace(options, clipping="flat", ledger=tmp_path / "flat.jsonl"))
    spread, same = train(replace(options, ledger=tmp_path / "spread.jsonl"), 4)
    monkeypatch.setattr("dpcomm.train.step.linear_chain", lambda module: None)
    general, _ = train(replace(options, ledger=tmp_path / "general.jsonl"), 2)
    for other in (spread, general):
        torch.testing.assert_close(weights(trainer), weights(other), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(weights(trainer), weights(flat), rtol=1e-4, atol=1e-5)
    assert summary.plan["clipping"] == clipping
    assert (summary.clip_norm == options.clip_norm) == (clipping != "adaptive")
    assert same.clip_norm == pytest.approx(summary.clip_norm, rel=1e-6)


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_gradients_that_are_formed_are_clipped_alike(options, tmp_path, monkeypatch, clipping):
    options = replace(options, clipping=clipping, unsafe_seed=3, optimizer="sgd", steps=5, lr=0.5)
    native, _ = train(options)
    monkeypatch.setattr("dpcomm.train.step.linear_chain", lambda module: None)
    monkeypatch.setattr("dpcomm.torch.is_known", lambda layer: False)
    formed, _ = train(replace(options, ledger=tmp_path / "other.jsonl"))
    torch.testing.assert_close(weights(native), weights(formed), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clipping", ["flat", *CLIPPINGS])
def test_every_clipping_learns_and_costs_what_the_plan_says(options, clipping):
    _, summary = train(replace(options, clipping=clipping), 2)
    assert summary.auc > 0.8
    assert summary.epsilon == accounting.epsilon(RATE, SIGMA, 40, 1e-5, "rdp")


def test_an_adaptive_norm_goes_on_where_it_was(options):
    adaptive = replace(options, clipping="adaptive", clip_norm=10.0, target_unclipped_quantile=0.5)
    _, first = train(replace(adaptive, steps=20), 2)
    assert first.clip_norm < 3, "far from the median, it moves fast"
    saved = results(run_threads(1, lambda comm: checkpoint.load(comm, options.checkpoint)))[0]
    assert saved.clip_norm == first.clip_norm
    trainer, second = train(replace(adaptive, steps=21, resume=True), 3)
    assert 0.8 < second.clip_norm / first.clip_norm < 1.25
    assert trainer.plan.clip_norm == 10.0


def test_a_release_of_both_costs_the_plans_epsilon(options):
    """The step's own noise, and the count's: what the accountant says of the two, by hand."""
    trainer, summary = train(replace(options, clipping="adaptive", accountant="pld"))
    adaptive = trainer.plan.adaptive
    assert adaptive.unclipped_num_std == RATE * TRAIN / 20
    gradient = trainer._combine._multiplier
    both = (gradient**-2 + (2 * adaptive.unclipped_num_std) ** -2) ** -0.5
    assert both == pytest.approx(SIGMA, rel=1e-12)
    assert summary.epsilon == accounting.epsilon(RATE, SIGMA, 40, 1e-5)


# Truncated batches.


@pytest.fixture
def truncated(options):
    return replace(
        options, truncated_batch_size=140, accountant="pld", evaluate_every=40
    )  # of 150 expected


def test_a_truncated_batch_is_no_larger_and_costs_more(truncated, monkeypatch):
    sizes = []

    class Noted(Batches):
        def ids(self, batch):
            ids = super().ids(batch)
            sizes.append(len(ids))
            return ids

    monkeypatch.setattr("dpcomm.train.trainer.Batches", Noted)
    _, summary = train(truncated)
    assert max(sizes) == 140
    assert len(sizes) == 40
    told = {"truncated_batch_size": 140, "records": TRAIN}
    assert summary.epsilon == accounting.epsilon(RATE, SIGMA, 40, 1e-5, **told)
    assert summary.epsilon > accounting.epsilon(RATE, SIGMA, 40, 1e-5)
    lines = [line for line in Ledger(truncated.ledger).lines if line["kind"] == "steps"]
    assert all(line["truncated_batch_size"] == 140 and line["records"] == TRAIN for line in lines)


@pytest.mark.parametrize("size", [2, 8])
def test_truncated_batches_are_the_same_at_any_number_of_ranks(truncated, tmp_path, size):
    truncated = replace(truncated, unsafe_seed=3, steps=10)
    alone, _ = train(truncated)
    spread, _ = train(replace(truncated, ledger=tmp_path / "other.jsonl"), size)
    torch.testing.assert_close(weights(alone), weights(spread), rtol=1e-3, atol=1e-5)


def test_a_target_holds_with_truncated_batches(truncated):
    _, summary = train(replace(truncated, noise_multiplier=None, target_epsilon=4.0, steps=10))
    assert 3.9 < summary.epsilon <= 4.0


def test_rdp_refuses_truncated_batches(truncated):
    with pytest.raises(UsageError, match="only 'pld' accounts for truncated batches"):
        train(replace(truncated, accountant="rdp"))


# Schedules.


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_warms_up_and_falls(schedule):
    rates = learning_rates(schedule, 0.4, 30, warmup=4)
    assert rates[:5] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])
    last = {"constant": 0.4, "linear": 0.4 / 26, "cosine": 0.0015, "step": 0.004}[schedule]
    assert rates[-1] == pytest.approx(last, rel=0.05)
    assert all(later <= rate for rate, later in pairwise(rates[4:]))
    assert learning_rates(schedule, 0.4, 30)[0] == 0.4


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_schedule_moves_the_sharded_optimizer_and_outlives_a_resume(
    options, monkeypatch, optimizer
):
    taken, following = [], ShardedOptimizer.next

    def noting(self):
        taken.append(self.optimizer.lr)
        return following(self)

    monkeypatch.setattr(ShardedOptimizer, "next", noting)
    options = replace(options, lr_schedule="cosine", warmup_steps=3, optimizer=optimizer)
    expected = learning_rates("cosine", options.lr, 40, 3)

    def die_at_step_25(comm):
        trainer = Trainer(comm, options)
        take = trainer._take_step

        def take_or_die(step, toll):
            if trainer.step == 25:
                raise KeyboardInterrupt
            take(step, toll)

        trainer._take_step = take_or_die
        try:
            trainer.train()
        except KeyboardInterrupt:
            trainer.budget.ledger.close()

    results(run_threads(1, die_at_step_25))
    assert taken == expected[:25]
    taken.clear()
    train(replace(options, resume=True), 1)
    assert taken == expected[20:], "from the checkpoint at the end of the first epoch"


def test_flags_are_the_options_names(tiny):
    options = parse(
        f"--data {tiny} --clipping adaptive --target-unclipped-quantile 0.7 --unclipped-num-std 9 "
        "--truncated-batch-size 300 --lr-schedule linear --warmup-steps 5".split()
    )
    assert (options.clipping, options.truncated_batch_size) == ("adaptive", 300)
    assert (options.lr_schedule, options.warmup_steps) == ("linear", 5)
    adaptive = options.adaptive(1000)
    assert (adaptive.unclipped_num_std, adaptive.target_unclipped_quantile) == (9.0, 0.7)
    assert parse([]).adaptive(1000).unclipped_num_std == np.float64(0.02) * 1000 / 20
