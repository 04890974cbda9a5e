"""The examples run as their first line says, and print what they promise."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from groups import MPIRUN, ROOT, environment

from dpcomm import accounting

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
COMMANDS = {
    "by_hand.py": [str(MPIRUN), "-np", "2", sys.executable],
    "collectives.py": [str(MPIRUN), "-np", "3", sys.executable],
    "ddp.py": TORCHRUN,
    "kernels.py": [sys.executable],
    "make_private.py": [str(MPIRUN), "-np", "2", sys.executable],
    "opacus_engine.py": [sys.executable],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_it_runs(name):
    if name == "opacus_engine.py":
        pytest.importorskip("opacus", reason="Opacus is not installed: pip install opacus")
    command = [*COMMANDS[name], str(ROOT / "examples" / name)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    if name == "collectives.py":
        assert done.stdout == "3 ranks, [0, 1, 2], add up to 6\n"
        return
    (epsilon,) = re.findall(r"epsilon ([\d.]+)", done.stdout)
    assert 0 < float(epsilon) < 20
    accuracy = re.search(r"accuracy ([\d.]+)", done.stdout)
    assert accuracy is None or float(accuracy[1]) > 0.8
    assert name != "by_hand.py" or float(re.search(r"off by ([\d.]+)", done.stdout)[1]) < 0.1


def test_the_readme_begins_with_an_example_that_prints_the_epsilon_of_its_one_step():
    (code,) = re.findall(
        r"## Ten lines\n\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    command = [str(MPIRUN), "-np", "2", sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{accounting.epsilon(0.01, 1.1, 1, 1e-6)}\n" * 2


def test_every_example_is_run_and_told_of():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(COMMANDS)
    told = (ROOT / "README.md").read_text()
    assert all(f"examples/{name}" in told for name in COMMANDS)
