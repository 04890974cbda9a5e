"""Ranks that are pinned to different cores still agree on every algorithm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from groups import environment

PROGRAM = Path(__file__).parent / "programs" / "pinned.py"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be shared unevenly")
@pytest.mark.parametrize("cores", [("1", "2"), ("2", "1")])
def test_ranks_with_different_cores_sum_once_and_add_the_noise_once(tmp_path, cores):
    ranks = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(tmp_path), *cores],
            env=environment(
                RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="pinned", MASTER_PORT=str(os.getpid())
            ),
        )
        for rank in range(2)
    ]
    assert [process.wait(120) for process in ranks] == [0, 0]
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["right", "right"]
