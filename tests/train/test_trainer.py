"""A training run: the same however many ranks there are, paid for, and resumable."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RATE, SIGMA, make_rows, write_folder
from groups import environment, results, run_threads

from dpcomm import MismatchError, UsageError, accounting, launch
from dpcomm.data import pums, schema, shards
from dpcomm.data.prepare import prepare
from dpcomm.data.stats import Statistics
from dpcomm.privacy.ledger import AHEAD, Ledger
from dpcomm.privacy.plan import Plan
from dpcomm.train import budget, checkpoint
from dpcomm.train.metrics import save_summary
from dpcomm.train.model import make_model
from dpcomm.train.options import DATASETS
from dpcomm.train.trainer import Trainer


@pytest.fixture(autouse=True)
def one_model_at_a_time(monkeypatch):
    """Ranks are threads here, which share torch's generator of first weights."""
    lock = threading.Lock()

    def alone(*arguments):
        with lock:
            return make_model(*arguments)

    monkeypatch.setattr("dpcomm.train.trainer.make_model", alone)


def train(options, size=1):
    """The trainer of rank 0 and its summary, once all ranks have shown the same parameters."""

    def body(comm):
        trainer = Trainer(comm, options)
        summary = trainer.train()
        if trainer.budget.ledger:
            trainer.budget.ledger.close()
        return trainer, summary

    outcomes = results(run_threads(size, body))
    for other, _ in outcomes[1:]:
        assert torch.equal(weights(outcomes[0][0]), weights(other))
    return outcomes[0]


def weights(trainer):
    return trainer.parameters.values.detach()


def epsilon(steps):
    return accounting.epsilon(RATE, SIGMA, steps, 1e-5, "rdp")


def test_the_summary_says_what_was_done(options):
    trainer, summary = train(options, 2)
    assert (summary.ranks, summary.steps, summary.records) == (2, 40, 3000)
    assert summary.epsilon == summary.epsilon_of_ledger == epsilon(40)
    assert (summary.sample_rate, summary.noise_multiplier, summary.clip_norm) == (RATE, SIGMA, 0.5)
    assert summary.accuracy > summary.majority + 0.1
    assert summary.auc > 0.8
    assert summary.step_us > 0
    assert summary.epoch_seconds == pytest.approx(summary.step_us * 20 / 1e6)
    assert summary.plan == trainer.plan.to_dict()
    assert Ledger(options.ledger).lines[0]["key_hash"] == summary.key_hash


@pytest.mark.parametrize("rate", [RATE, 0.0005])  # 0.0005: most ranks' batches are empty
@pytest.mark.parametrize("size", [2, 8])
def test_any_number_of_ranks_draws_the_same_samples_and_noise(options, tmp_path, size, rate):
    options = replace(options, unsafe_seed=3, sample_rate=rate, steps=10)
    alone = weights(train(options)[0])
    spread = weights(train(replace(options, ledger=tmp_path / "other.jsonl"), size)[0])
    torch.testing.assert_close(alone, spread, rtol=1e-3, atol=1e-5)
    other = replace(options, ledger=tmp_path / "third.jsonl", unsafe_seed=4)
    assert not torch.allclose(alone, weights(train(other)[0]), rtol=1e-3, atol=1e-5)


def test_the_general_path_trains_as_the_native_one_does(options, tmp_path, monkeypatch):
    options = replace(options, unsafe_seed=3, optimizer="sgd")
    native = weights(train(options)[0])
    monkeypatch.setattr("dpcomm.train.step.linear_chain", lambda module: None)
    general = weights(train(replace(options, ledger=tmp_path / "other.jsonl"))[0])
    torch.testing.assert_close(native, general, rtol=1e-4, atol=1e-6)


def test_records_that_are_not_finite_change_nothing_and_are_told_of_on_request_alone(
    options, tmp_path, capfd, caplog
):
    """They are appended, for the draws of a record depend on its own id alone."""
    options = replace(options, unsafe_seed=3, steps=10, optimizer="sgd")
    rows, test = make_rows()
    bad = np.full((60, rows.shape[1]), np.nan, np.float32)
    bad[:, -1] = 1
    folder = write_folder(tmp_path / "bad", np.concatenate([rows, bad]), test)
    clean, _ = train(options, 2)
    # The sums are divided by rate times records, a constant to which the bad ones belong.
    lr = options.lr * 3060 / 3000
    spoilt = replace(options, data=folder, ledger=tmp_path / "other.jsonl", lr=lr)
    with caplog.at_level("DEBUG", "dpcomm"):
        trainer, _ = train(spoilt, 2)
    assert "samples with a NaN or infinite gradient were left out" in caplog.text
    assert "left out" not in "".join(capfd.readouterr())
    torch.testing.assert_close(weights(trainer), weights(clean), rtol=1e-5, atol=1e-7)


def test_no_key_leaves_the_memory_of_the_job(options, tmp_path, capfd, caplog):
    caplog.set_level("DEBUG")
    trainer, summary = train(options)
    save_summary(summary, tmp_path / "summary.json")
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5, "checkpoint, the best one, ledger, metrics, summary"
    said = "".join(capfd.readouterr()) + caplog.text + repr(trainer._combine) + repr(summary)
    for key in (trainer._combine._key, trainer._sampling_key):
        assert len(key) == 32
        for text in (key, key.hex().encode(), base64.b64encode(key)):
            assert not any(text in content for content in [*files, said.encode()])


def test_without_privacy_nothing_is_promised(options):
    private = replace(options, private=False, noise_multiplier=None)
    trainer, summary = train(private, 2)
    assert summary.epsilon is summary.plan is summary.key_hash is None
    assert trainer.budget.ledger is None
    assert not options.ledger.exists()
    assert summary.auc > 0.9


def test_a_run_resumes_on_another_number_of_ranks_with_another_key(options):
    _, first = train(replace(options, steps=20), 2)
    trainer, second = train(replace(options, resume=True), 3)
    assert (first.steps, second.steps) == (20, 40)
    assert second.epsilon == epsilon(40)
    assert first.key_hash != second.key_hash
    assert second.auc > 0.8
    saved = results(run_threads(1, lambda comm: checkpoint.load(comm, options.checkpoint)))[0]
    assert saved.step == 40
    assert torch.equal(saved.model["0.weight"], trainer.model[0].weight)
    assert "key" not in "".join(saved.plan)


@pytest.mark.parametrize("ledger", ["another file", "lost"])
def test_a_run_is_not_resumed_without_the_ledger_that_paid_for_it(options, tmp_path, ledger):
    train(replace(options, steps=20))
    resumed = replace(options, resume=True)
    if ledger == "lost":
        options.ledger.unlink()
    else:
        resumed = replace(resumed, ledger=tmp_path / "other.jsonl")
        train(replace(resumed, resume=False, checkpoint=tmp_path / "other.pt"))  # pays, for itself
    for error in run_threads(2, lambda comm: Trainer(comm, resumed)):
        assert isinstance(error, UsageError)
        assert f"{resumed.ledger} holds 0 of them" in str(error)
        assert f"--ledger {options.ledger}" in str(error)


def test_what_a_dead_job_had_paid_for_counts(options):
    """It dies after its checkpoint at step 20 and before its next: those steps are done again."""
    train(replace(options, steps=20))
    ledger = Ledger(options.ledger)
    ledger.pay(Plan(**ledger.lines[0]["plan"]), AHEAD)
    ledger.close()
    _, summary = train(replace(options, resume=True))
    assert summary.steps == 40
    assert summary.epsilon == epsilon(40 + AHEAD)


def test_a_target_is_kept_even_when_steps_were_paid_in_vain(options):
    options = replace(options, noise_multiplier=None, target_epsilon=2.0)
    _, whole = train(options)
    assert 0.99 * 2 <= whole.epsilon <= 2
    begun = replace(options, checkpoint=options.checkpoint.with_name("b.pt"))
    begun = replace(begun, ledger=options.ledger.with_name("b.jsonl"))

    class DeadError(Exception):
        pass

    def die_at_step_25(comm):
        trainer = Trainer(comm, begun)
        begin = trainer._combine.begin

        def begin_or_die():
            if trainer._combine.steps == 25:
                raise DeadError
            return begin()

        trainer._combine.begin = begin_or_die
        try:
            trainer.train()
        finally:
            trainer.budget.ledger.close()

    assert isinstance(run_threads(1, die_at_step_25)[0], DeadError)
    _, resumed = train(replace(begun, resume=True))
    assert 20 < resumed.steps < 40, "the budget ended before the plan"
    assert resumed.epsilon <= 2


def test_another_run_beside_it_counts_in_the_ledger_not_in_the_model(options):
    first, _ = train(options)
    _, again = train(options)
    old = options.checkpoint.with_name("checkpoint.pt.old")
    (kept,) = results(run_threads(1, lambda comm: checkpoint.load(comm, old)))
    assert (kept.run, kept.step) == (first.budget.run, 40), "a model that was paid for is not lost"
    assert again.epsilon == epsilon(40)
    assert again.epsilon_of_ledger == epsilon(80)


def test_releases_of_preparation_count(options, tmp_path):
    charge = {"epsilon": 0.25, "delta": 1e-7, "what": "quantiles of age"}
    folder = write_folder(tmp_path / "charged", *make_rows(), {"ledger": [charge]})
    _, summary = train(replace(options, data=folder))
    assert summary.epsilon > epsilon(40) + 0.2


def prepared(folder, statistics, ledger):
    """Generated people, of whom a missing age becomes the mean."""
    (folder / "raw.csv").write_bytes(pums.generate(4000, seed=5))
    source = schema.load("pums").source
    source["columns"]["age"]["impute"] = "mean"
    asking = schema.from_dict(source)
    prepare(str(folder / "raw.csv"), str(folder / "out"), asking, stats=statistics, ledger=ledger)
    return folder / "out"


def test_statistics_of_preparation_are_charged_once_in_the_ledger_of_training(options, tmp_path):
    pytest.importorskip("opendp")
    folder = prepared(tmp_path, Statistics("dp", 0.25), options.ledger)
    _, summary = train(replace(options, data=folder))
    kinds = [line["kind"] for line in Ledger(options.ledger).lines]
    assert kinds == ["release", "launch", "steps", "steps"]
    spent = [accounting.Release(0.25, 0.0), accounting.Steps(RATE, SIGMA, 40)]
    assert summary.epsilon == accounting.composed_epsilon(spent, 1e-5, "rdp")
    assert summary.epsilon > epsilon(40) + 0.2
    assert summary.warning is None


def test_exact_statistics_of_preparation_are_told_of(options, tmp_path, capsys):
    folder = prepared(tmp_path, Statistics("exact"), options.ledger)
    _, summary = train(replace(options, data=folder))
    assert "exact statistics, which epsilon does not cover" in summary.warning
    assert f"Warning: {summary.warning}." in capsys.readouterr().out


def test_noise_from_a_seed_has_no_epsilon(options, tmp_path):
    _, summary = train(replace(options, unsafe_seed=3))
    assert summary.epsilon is summary.epsilon_of_ledger is None
    save_summary(summary, tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text())["epsilon"] is None
    _, secure = train(replace(options, checkpoint=tmp_path / "secure.pt"))
    assert secure.epsilon == epsilon(40)
    assert secure.epsilon_of_ledger is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": (9,)}, "does not fit the model"),
        ({"private": False, "noise_multiplier": None}, "with privacy: drop --non-private"),
        ({"checkpoint": "none.pt"}, "there is no checkpoint"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(options, tmp_path, change, message):
    train(replace(options, steps=2))
    if "checkpoint" in change:
        change = {"checkpoint": tmp_path / change["checkpoint"]}
    with pytest.raises(UsageError, match=message):
        train(replace(options, resume=True, **change))


def test_a_seed_is_not_resumed(options):
    options = replace(options, unsafe_seed=1, steps=2)
    train(options)
    with pytest.raises(UsageError, match="drop --unsafe-seed"):
        train(replace(options, resume=True, steps=4))


def test_ranks_that_differ_in_their_flags_are_told_so(options):
    def body(comm):
        return Trainer(comm, replace(options, clip_norm=0.5 + comm.rank))

    for error in run_threads(2, body):
        assert isinstance(error, MismatchError)
        assert "clip_norm is 0.5 on rank 0, 1.5 on rank 1" in str(error)


@pytest.mark.parametrize("dataset", DATASETS)
def test_data_of_ours_that_are_missing_come_with_the_commands_that_prepare_them(
    options, tmp_path, dataset, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        Trainer(launch.alone(), replace(options, data=Path("data", dataset), dataset=dataset))
    error = capsys.readouterr().err
    assert f"--data data/{dataset}: data/{dataset} is no prepared folder" in error
    commands = error.split("fix: ")[1].split(" && ")
    assert [command.split()[-1] for command in commands][-1] == dataset
    for command in commands:
        _, *arguments = command.split()
        subprocess.run([sys.executable, *arguments, "--help"], check=True, env=environment())


@pytest.mark.parametrize("dataset", ["census", "people"])
def test_data_of_ones_own_that_are_missing_are_not_told_to_be_ours(
    options, tmp_path, dataset, capsys
):
    with pytest.raises(SystemExit, match="2"):
        Trainer(launch.alone(), replace(options, data=tmp_path / "people", dataset=dataset))
    error = capsys.readouterr().err
    assert f"dpcomm.data.prepare INPUT {tmp_path}/people --schema FILE.toml" in error
    assert "census" not in error
    with pytest.raises(SystemExit, match="2"):
        Trainer(launch.alone(), replace(options, data=Path("hdfs://name/people"), dataset=dataset))
    assert "copy it to a disk that ranks can map" in capsys.readouterr().err


def test_accounting_that_takes_longer_than_a_collective_may_is_waited_for(options, monkeypatch):
    """Rank 0 works it out, and its peers would take it for dead."""
    found = accounting.noise_multiplier
    monkeypatch.setattr(budget, "_HEARTBEAT", 0.2)

    def slow(*arguments, **settings):
        time.sleep(2.5)
        return found(*arguments, **settings)

    monkeypatch.setattr(accounting, "noise_multiplier", slow)
    options = replace(options, noise_multiplier=None, target_epsilon=3.0)
    plans = run_threads(2, lambda comm: Trainer(comm, options).plan, timeout=1.0)
    assert plans[0] == plans[1]


def test_a_delta_that_cannot_be_is_refused_before_its_noise_is_sought(options, monkeypatch):
    monkeypatch.setattr(accounting, "noise_multiplier", lambda *_: pytest.fail("sought"))
    with pytest.raises(UsageError, match=r"delta=0.5 for 3000 records"):
        train(replace(options, noise_multiplier=None, target_epsilon=3.0, delta=0.5))


@pytest.mark.parametrize("in_memory", [False, True])
def test_several_records_of_one_person_are_refused(options, tmp_path, in_memory, capsys):
    folder = write_folder(tmp_path / "two", *make_rows(), {"records_per_unit": 2})
    train = shards.load(folder) if in_memory else None
    with pytest.raises(SystemExit, match="2"):
        Trainer(launch.alone(), replace(options, data=folder), train)
    assert "prepare with records_per_unit = 1" in capsys.readouterr().err
