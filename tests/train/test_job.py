"""The command itself, under its launchers, and what is left when a rank is killed in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from groups import MPIRUN, ROOT, environment

from dpcomm import accounting
from dpcomm.privacy.ledger import AHEAD, Ledger

RATE, SIGMA, DELTA = 0.05, 4.0, 1e-5
LAUNCHERS = {
    "alone": ([sys.executable], 1),
    "mpirun": ([MPIRUN, "-np", "4", sys.executable], 4),
    "torchrun": ([Path(MPIRUN).with_name("torchrun"), "--nproc-per-node", "2"], 2),
}


@pytest.fixture
def flags(tiny, tmp_path):
    return (
        f"-m dpcomm.train --data {tiny} --checkpoint {tmp_path}/checkpoint.pt --hidden 8 "
        f"--noise-multiplier {SIGMA} --sample-rate {RATE} --delta {DELTA} --accountant rdp"
    ).split()


def run(command):
    command = [str(part) for part in command]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=120, cwd=ROOT
    )


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_run_ends_with_its_facts(launcher, flags, tmp_path):
    start, ranks = LAUNCHERS[launcher]
    done = run([*start, *flags, "--steps", "30"])
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["ranks"], summary["steps"]) == (ranks, 30)
    epsilon = accounting.show(summary["epsilon"])
    for line in (
        f"accuracy       {summary['accuracy']:.4f}",
        f"ε              {epsilon} at δ = 1e-05",
        f"checkpoint     {tmp_path / 'checkpoint.pt'}",
        f"summary        {tmp_path / 'summary.json'}",
    ):
        assert done.stdout.count(line) == 1, "rank 0 alone reports"
    assert re.search(r"epoch +\d+\.\d\d s", done.stdout)
    assert done.stdout.count("Trust:") == 1


def test_a_wrong_command_is_code_2_and_says_the_fix_once(flags, tmp_path):
    done = run([MPIRUN, "-np", "2", sys.executable, *flags, "--clip-norm", "-1"])
    assert done.returncode == 2
    assert done.stderr.count("--clip-norm: '-1' is not a number above 0") == 1
    done = run([MPIRUN, "-np", "4", sys.executable, *flags, "--data", tmp_path / "none"])
    assert done.returncode == 2
    assert done.stderr.count("none is no prepared folder") == 1


def children(pid):
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = int(re.search(r"PPid:\s+(\d+)", (entry / "status").read_text())[1])
        except (OSError, TypeError):
            continue
        if parent == pid:
            found += [int(entry.name), *children(int(entry.name))]
    return found


def ranks_of(pid):
    """The processes under a launcher that train, by rank."""
    ranks = {}
    for child in children(pid):
        try:
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        rank = next((v.split(b"=")[1] for v in variables if v.startswith(b"PMI_RANK=")), None)
        if rank is not None and b"dpcomm.train" in command and b"mpirun" not in command:
            ranks[int(rank)] = child
    return ranks


def alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("victim", [0, 1])
def test_kill_and_resume_never_counts_less_than_was_spent(victim, flags, tmp_path):
    endless = [MPIRUN, "-np", "2", sys.executable, *flags, "--steps", "1000000"]
    log = tmp_path / "log"
    with open(log, "w") as output:
        command = [str(part) for part in endless]
        job = subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=output, stdout=output)
    ledger = tmp_path / "ledger.jsonl"
    deadline = time.monotonic() + 60
    while not (ledger.exists() and ledger.read_text().count('"steps"') > 5):
        assert time.monotonic() < deadline, log.read_text()
        assert job.poll() is None, log.read_text()
        time.sleep(0.02)
    processes = ranks_of(job.pid)
    assert sorted(processes) == [0, 1]
    os.kill(processes[victim], signal.SIGKILL)
    killed = time.monotonic()
    assert job.wait(timeout=10) != 0
    while any(alive(pid) for pid in processes.values()):
        assert time.monotonic() < killed + 10
        time.sleep(0.1)

    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    ledger = Ledger(ledger)
    paid = sum(part.count for part in ledger.spent())
    ledger.close()
    assert saved["step"] <= paid, "nothing was released that had not been paid for"

    steps = saved["step"] + 50
    resumed = run([sys.executable, *flags, "--steps", steps, "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["ranks"], summary["steps"]) == (1, steps)
    assert summary["epsilon"] == accounting.epsilon(RATE, SIGMA, paid + 50, DELTA, "rdp")
    assert paid >= AHEAD
    launches = [
        json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()
    ]  # fmt: skip
    keys = [line["key_hash"] for line in launches if line["kind"] == "launch"]
    assert len(keys) == len(set(keys)) == 2
