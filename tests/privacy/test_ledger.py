"""The ledger is on the disk before what it pays for, and never counts less than was spent."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from groups import ROOT, environment

from dpcomm import UsageError, accounting
from dpcomm.privacy.ledger import AHEAD, Ledger, Toll
from dpcomm.privacy.plan import UNSAFE, Plan

PLAN = Plan(
    records=10_000, sample_rate=0.02, steps=100, clip_norm=1.0, noise_multiplier=1.2, delta=1e-5
)


class OneRank:
    rank, size = 0, 1

    def barrier(self):
        pass


def epsilon(steps):
    return accounting.epsilon(PLAN.sample_rate, PLAN.noise_multiplier, steps, PLAN.delta)


def reopened(ledger):
    ledger.close()
    return Ledger(ledger.path)


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "runs" / "ledger.jsonl")
    ledger.launch("run", PLAN, 1, "key a")
    return ledger


def test_what_is_written_is_read_back_over_launches(ledger):
    ledger.pay(PLAN, 40)
    ledger = reopened(ledger)
    ledger.launch("run", PLAN, 2, "key b")
    ledger.pay(PLAN, 60)
    assert ledger.epsilon(PLAN.delta) == epsilon(100)
    assert [line["kind"] for line in reopened(ledger).lines] == ["launch", "steps"] * 2


def test_a_run_is_charged_for_its_own_steps_and_the_file_for_all(ledger):
    ledger.pay(PLAN, 40)
    ledger.launch("other", PLAN, 1, "key b")
    ledger.pay(PLAN, 20)
    ledger = reopened(ledger)
    ledger.launch("run", PLAN, 1, "key c")
    ledger.pay(PLAN, 10)
    assert ledger.epsilon(PLAN.delta, run="run") == epsilon(50)
    assert ledger.epsilon(PLAN.delta, run="other") == epsilon(20)
    assert ledger.epsilon(PLAN.delta) == epsilon(70)


def test_other_releases_compose_once_each(ledger):
    ledger.pay(PLAN, 40)
    for _ in range(2):
        ledger.release(0.3, 1e-9, "means")
    assert epsilon(40) < ledger.epsilon(PLAN.delta) <= (epsilon(40) + 0.3) * 1.001
    assert [line["kind"] for line in reopened(ledger).lines].count("release") == 1


def test_steps_are_paid_and_synced_before_they_are_taken(ledger, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    toll = Toll(OneRank(), ledger, PLAN, steps=2 * AHEAD + 5)
    for taken in range(1, 2 * AHEAD + 6):
        toll.pay()
        paid = sum(line["count"] for line in ledger.lines if line["kind"] == "steps")
        assert taken <= paid < taken + AHEAD
        assert synced[-1] == ledger.path.stat().st_size
    assert len(synced) == 3
    assert paid == 2 * AHEAD + 5, "a job that ends well pays for what it took"
    with pytest.raises(ValueError, match="more steps than were announced"):
        toll.pay()


@pytest.mark.parametrize("keep", [1, 8, 40, 75])
def test_a_torn_last_line_counts_in_full(ledger, keep):
    ledger.pay(PLAN, AHEAD)
    before = ledger.path.stat().st_size
    ledger.pay(PLAN, AHEAD)
    ledger.close()
    assert before + keep < ledger.path.stat().st_size
    os.truncate(ledger.path, before + keep)
    torn = Ledger(ledger.path)
    assert torn.epsilon(PLAN.delta) == epsilon(2 * AHEAD)
    assert reopened(torn).epsilon(PLAN.delta) == epsilon(2 * AHEAD)


def test_a_torn_first_line_paid_for_nothing(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"kind": "laun')
    assert Ledger(path).spent() == []
    assert path.read_text() == ""


def test_damage_before_the_last_line_is_refused(ledger):
    ledger.pay(PLAN, 1)
    ledger.close()
    text = ledger.path.read_text()
    ledger.path.write_text("x" + text)
    with pytest.raises(UsageError, match=r"line 1 is damaged.*restore"):
        Ledger(ledger.path)


def test_a_key_is_never_used_again(ledger):
    with pytest.raises(UsageError, match="drawn before from the key with hash key a"):
        reopened(ledger).launch("run", PLAN, 1, "key a")


def test_two_jobs_cannot_hold_one_ledger(ledger):
    with pytest.raises(UsageError, match="in use by another job"):
        Ledger(ledger.path)


def test_affordable_is_the_most_that_keeps_the_target(ledger):
    plan = replace(PLAN, accountant="rdp")  # the faster one: the search asks it ten times
    target = accounting.epsilon(
        plan.sample_rate, plan.noise_multiplier, 150, plan.delta, plan.accountant
    )
    assert ledger.affordable(plan, target) == 100, "no more than planned"
    ledger.pay(plan, 90)
    assert ledger.affordable(plan, target) == 60
    ledger.pay(plan, 90)
    assert ledger.affordable(plan, target) == 0


def test_kill_at_any_moment_leaves_at_least_what_was_released(tmp_path):
    """A child pays, then tells us of each release; killed, it has told of no more than it paid."""
    code = """
import sys
from test_ledger import PLAN, Ledger, OneRank, Toll
ledger = Ledger(sys.argv[1]); ledger.launch("run", PLAN, 1, sys.argv[2])
toll = Toll(OneRank(), ledger, PLAN, steps=10**9)
while True:
    toll.pay(); sys.stdout.buffer.write(b"."); sys.stdout.flush()
"""
    path, released = tmp_path / "ledger.jsonl", 0
    for launch, moment in enumerate((1, 31, 33, 400)):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(launch)],
            stdout=subprocess.PIPE,
            env=environment(PYTHONPATH=f"{ROOT}:{Path(__file__).parent}"),
        )
        released += len(child.stdout.read(moment))
        os.kill(child.pid, signal.SIGKILL)
        released += len(child.communicate()[0])
        ledger = Ledger(path)
        paid = sum(part.count for part in ledger.spent())
        ledger.close()
        assert released <= paid <= released + (launch + 1) * AHEAD


def test_the_file_is_lines_of_json(ledger):
    ledger.pay(PLAN, 3)
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert lines[0]["plan"] == PLAN.to_dict()
    assert lines[1] == {"kind": "steps", "count": 3, "sample_rate": 0.02, "noise_multiplier": 1.2}
    assert lines[0]["ahead"] == AHEAD


@pytest.mark.parametrize("line", ['{"kind": "audit", "count": 3}', "3"])
def test_a_line_of_unknown_cost_is_refused(ledger, line):
    ledger.close()
    with open(ledger.path, "a") as file:
        file.write(line + "\n")
    with pytest.raises(UsageError, match=r"line 2 has kind .*, whose cost is unknown"):
        Ledger(ledger.path)


def test_noise_from_a_seed_promises_nothing(ledger):
    ledger.pay(PLAN, 1)
    ledger.launch("tested", replace(PLAN, noise=UNSAFE), 1, "key b")
    assert ledger.epsilon(PLAN.delta, run="run") == epsilon(1)
    assert ledger.epsilon(PLAN.delta, run="tested") == ledger.epsilon(PLAN.delta) == math.inf
