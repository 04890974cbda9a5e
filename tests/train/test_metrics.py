"""What a run measures on its way, keeps, and stops by."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from conftest import RATE, SIGMA
from groups import results, run_threads

from dpcomm import accounting
from dpcomm.train import checkpoint, metrics
from dpcomm.train.metrics import Best, Measured, Metrics, best_of
from dpcomm.train.trainer import Trainer


@pytest.fixture
def options(options):
    return replace(options, evaluate_every=10)


def train(options):
    trainer = Trainer(results(run_threads(1, lambda comm: comm))[0], options)
    summary = trainer.train()
    trainer.budget.ledger.close()
    return trainer, summary


def row(step, accuracy, auc=None):
    return Measured(step, step / 20, 1.0, accuracy, auc, 0.5)


def qualities(monkeypatch, accuracies):
    """The model is found as good as this, evaluation by evaluation."""
    left = iter(accuracies)
    monkeypatch.setattr(
        "dpcomm.train.trainer.evaluate", lambda *_: {"accuracy": next(left), "majority": 0.5}
    )


def test_evaluations_are_lines_whose_epsilon_is_that_of_the_ledger(options):
    _, summary = train(options)
    lines = [json.loads(line) for line in options.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert [line["epoch"] for line in lines] == [0.5, 1.0, 1.5, 2.0]
    paid = [32, 32, 32, 40]  # ahead
    expected = [accounting.epsilon(RATE, SIGMA, steps, 1e-5, "rdp") for steps in paid]
    assert [line["epsilon"] for line in lines] == expected
    assert (lines[-1]["accuracy"], lines[-1]["auc"]) == (summary.accuracy, summary.auc)


def test_the_best_model_is_kept_beside_the_last(options, monkeypatch):
    qualities(monkeypatch, [0.6, 0.8, 0.7, 0.75])
    _, summary = train(options)
    assert (summary.best_step, summary.best_quality) == (20, 0.8)
    best = torch.load(checkpoint.best(options.checkpoint), weights_only=True)
    last = torch.load(options.checkpoint, weights_only=True)
    assert (best["step"], last["step"]) == (20, 40)
    assert not torch.equal(*(next(iter(c["model"].values())) for c in (best, last)))


def test_patience_ends_a_run_and_what_was_not_taken_is_not_charged(options, monkeypatch):
    qualities(monkeypatch, [0.8, 0.7, 0.7, 0.9])
    _, summary = train(replace(options, patience=2, steps=400, evaluate_every=32))
    assert summary.steps == 96
    assert summary.epsilon == accounting.epsilon(RATE, SIGMA, 96, 1e-5, "rdp")


def test_a_resumed_run_goes_on_with_its_measurements_and_its_patience(options, monkeypatch):
    qualities(monkeypatch, [0.6, 0.8, 0.7, 0.7, 0.75])
    train(replace(options, steps=40))
    _, summary = train(replace(options, steps=400, patience=3, resume=True))
    assert [r.step for r in metrics.read(options.metrics)] == [10, 20, 30, 40, 50]
    assert (summary.steps, summary.best_step) == (50, 20)


def test_what_was_measured_after_the_checkpoint_is_measured_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = Metrics(path)
    for step in (10, 20, 30):
        first.add(row(step, 0.5))
    with path.open("a") as file:
        file.write('{"step": 40, "epo')  # the job died here
    resumed = Metrics(path, step=20)
    resumed.add(row(20, 0.5))
    resumed.add(row(30, 0.6))
    assert [(r.step, r.accuracy) for r in metrics.read(path)] == [(10, 0.5), (20, 0.5), (30, 0.6)]
    assert Metrics(path).rows == []


def test_the_best_is_by_auc_where_there_is_one():
    assert best_of([row(1, 0.9, 0.6), row(2, 0.8, 0.7)]) == Best(2, 0.7, 0)
    assert best_of([row(1, 0.9), row(2, 0.8)]) == Best(1, 0.9, 1)
    assert best_of([row(1, 0.9, float("nan"))]) == Best(1, 0.9, 0)
    assert not Best(1, 0.9, 2).stale(3)
    assert Best(1, 0.9, 3).stale(3)


@pytest.mark.parametrize("auc", [None, 0.7])
def test_the_picture_is_an_image(tmp_path, auc):
    pytest.importorskip("matplotlib")
    from dpcomm.train import plot

    plot.save([row(10, 0.5, auc), row(20, 0.6, auc)], tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_reads_what_was_measured(options, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, summary = train(replace(options, tensorboard=tmp_path / "board"))
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    accuracy = events.Scalars("accuracy")
    assert [event.step for event in accuracy] == [10, 20, 30, 40]
    assert accuracy[-1].value == pytest.approx(summary.accuracy)
    assert events.Scalars("epsilon")[-1].value == pytest.approx(summary.epsilon)
