"""A job that is killed at any moment never made more updates than its ledger shows."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import RATE, SIGMA
from groups import MPIRUN, ROOT, environment

from dpcomm import accounting
from dpcomm.privacy.ledger import AHEAD, Ledger

PROGRAM = ROOT / "tests" / "train" / "programs" / "noting.py"
STEPS = 20_000
PATIENCE = 120.0  # seconds for a launch, on a machine that does much else


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


class Job:
    def __init__(self, folder, data, ranks):
        self.updates, self.ranks = folder / "updates", ranks
        self.checkpoint, self.ledger = folder / "checkpoint.pt", folder / "ledger.jsonl"
        self.summary = folder / "summary.json"
        self.flags = [
            f"--data={data}", f"--checkpoint={self.checkpoint}", f"--steps={STEPS}",
            f"--sample-rate={RATE}", f"--noise-multiplier={SIGMA}", "--clip-norm=0.5",
            "--threads=1", "--delta=1e-5", "--hidden=4", "--accountant=rdp",
            f"--evaluate-every={STEPS}",
        ]  # fmt: skip

    def start(self):
        launcher = [str(MPIRUN), "-np", str(self.ranks)] if self.ranks > 1 else []
        resume = ["--resume"] if self.checkpoint.exists() else []
        return subprocess.Popen(
            [*launcher, sys.executable, str(PROGRAM), *self.flags, *resume],
            env=environment(UPDATES=str(self.updates)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def made(self) -> int:
        return self.updates.stat().st_size if self.updates.exists() else 0

    def kill(self, process) -> None:
        ranks = {path: int(path.stem) for path in self.updates.parent.glob("*.pid")}
        for pid in ranks.values():
            with suppress(ProcessLookupError):  # mpirun may have been the faster
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
        for path, pid in ranks.items():
            while alive(pid):
                time.sleep(0.01)
            path.unlink()

    def paid(self) -> int:
        ledger = Ledger(self.ledger)
        ledger.close()
        return sum(line["count"] for line in ledger.lines if line["kind"] == "steps")


@pytest.mark.parametrize(
    ("ranks", "kills"),
    [
        (1, 3),
        pytest.param(1, 20, marks=pytest.mark.slow),
        pytest.param(2, 20, marks=pytest.mark.slow),
    ],
)
def test_the_ledger_shows_every_update_after_kills_at_random_moments(tmp_path, tiny, ranks, kills):
    moments = random.Random()
    job = Job(tmp_path, tiny, ranks)
    for launches in range(1, kills + 1):
        before, process = job.made(), job.start()
        deadline = time.monotonic() + PATIENCE
        while job.made() == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert job.made() > before, process.communicate(timeout=5)[1]
        time.sleep(moments.expovariate(20))  # from the first update to a few hundred later
        job.kill(process)
        assert job.made() <= job.paid() <= job.made() + launches * AHEAD
    process = job.start()
    assert process.wait(PATIENCE) == 0, process.stderr.read()
    summary = json.loads(job.summary.read_text())
    made, paid = job.made(), job.paid()
    assert summary["steps"] == STEPS <= made <= paid <= made + kills * AHEAD
    assert summary["epsilon_of_ledger"] == accounting.epsilon(RATE, SIGMA, paid, 1e-5, "rdp")
    assert summary["epsilon"] >= accounting.epsilon(RATE, SIGMA, STEPS, 1e-5, "rdp")
