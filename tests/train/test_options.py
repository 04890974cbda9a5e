"""Flags, the configuration file, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpcomm import UsageError
from dpcomm.train.options import DATASETS, OWN, parse


def test_without_a_flag_everything_has_a_default():
    options = parse([])
    assert (options.dataset, options.data) == ("census", Path("data/census"))
    assert options.private
    assert options.target_epsilon == DATASETS["census"].target_epsilon
    assert options.checkpoint == Path("runs/census/checkpoint.pt")
    assert options.ledger == Path("runs/census/ledger.jsonl")
    assert options.summary == Path("runs/census/summary.json")


def test_what_is_given_replaces_its_alternative():
    assert parse(["--noise-multiplier", "1.5"]).target_epsilon is None
    assert parse(["--non-private"]).target_epsilon is None
    assert parse(["--steps", "7"]).epochs is None
    assert parse(["--hidden", ""]).hidden == ()
    assert parse(["--dataset", "pums", "--checkpoint", "a/b.pt"]).ledger == Path("a/ledger.jsonl")


def test_data_of_ones_own_have_their_name_and_defaults_that_owe_nothing_to_others(tmp_path):
    options = parse(["--data", f"{tmp_path}/people/"])
    assert (options.dataset, options.data) == ("people", tmp_path / "people")
    assert options.sample_rate == OWN.sample_rate
    assert options.ledger == Path("runs/people/ledger.jsonl")
    assert parse(["--dataset", "people"]).data == Path("data/people")
    assert parse(["--data", "elsewhere/pums"]).epochs == DATASETS["pums"].epochs
    assert parse(["--data", "elsewhere/x", "--dataset", "pums"]).epochs == DATASETS["pums"].epochs


def test_a_run_without_privacy_has_a_folder_of_its_own():
    assert parse(["--non-private"]).checkpoint == Path("runs/census-non-private/checkpoint.pt")


def test_a_flag_beats_the_file_and_the_file_the_default(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(
        'clip_norm = 0.5\nlr = 0.3\nhidden = [8, 4]\nnon-private = false\nalgo = "ring"'
    )
    options = parse(["--config", str(config), "--lr", "0.1"])
    assert (options.clip_norm, options.lr, options.hidden) == (0.5, 0.1, (8, 4))
    assert (options.private, options.algo) == (True, "ring")


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("target_epsilon = 2.0\nepochs = 3", ["--noise-multiplier=1.5", "--steps", "7"]),
        ("non-private = true\nepochs = 3", ["--noise-multiplier", "1.5", "--steps=7"]),
    ],
)
def test_a_flag_beats_what_it_excludes_in_the_file(tmp_path, text, flags):
    config = tmp_path / "run.toml"
    config.write_text(text)
    options = parse(["--config", str(config), *flags])
    assert (options.private, options.noise_multiplier, options.steps) == (True, 1.5, 7)
    assert options.target_epsilon is options.epochs is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip_nrom = 1", "'clip_nrom' is unknown: use accountant"),
        ("clip_norm = ", "is not TOML"),
        ("resume = 1", "write true or false"),
        ("config = 'other.toml'", "'config' is unknown"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, text, message):
    config = tmp_path / "run.toml"
    config.write_text(text)
    with pytest.raises(UsageError, match=message):
        parse(["--config", str(config)])
    with pytest.raises(UsageError, match="give a file that exists"):
        parse(["--config", str(tmp_path / "none.toml")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sample-rate", "1.5"], "--sample-rate: '1.5' is not a number above 0, at most 1"),
        (["--noise-multiplier", "0"], "--noise-multiplier: '0' is not a number above 0"),
        (["--noise-multiplier", "1", "--target-epsilon", "2"], "not allowed with"),
        (["--noise-multiplier", "1", "--non-private"], "not allowed with"),
        (["--steps", "1.5"], "'1.5' is not a whole number above 0"),
        (["--hidden", "64,x"], "'x' is not a whole number"),
        (["--model", "mine"], "is not PACKAGE.MODULE:FACTORY"),
        (["--dataset", "my/iris"], "'my/iris' is not a name: give a folder as --data"),
        (["--clip", "1"], "unrecognized arguments"),
    ],
)
def test_a_wrong_flag_is_refused_by_name(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
