from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import os, sys
import numpy as np
from dpcomm.privacy.clip import clip_sum

grads = np.ones((4, 10_000), np.float32)
expected = clip_sum(grads, 1.0).total

def tasks():
    return len(os.listdir("/proc/self/task"))

def threads_that_two_start():
    before = tasks()
    assert (clip_sum(grads, 1.0, threads=2).total == expected).all()
    return tasks() - before

if sys.argv[1] == "torch":
    import torch
    torch.set_num_threads(2)
    torch.ones(1_000_000).exp()
print(threads_that_two_start(), threads_that_two_start(), flush=True)
child = os.fork()
if child == 0:
    print(threads_that_two_start(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def started(library: str, **environment: str) -> list[int]:
    """Threads that a kernel on two starts: at first, again, and first in a forked child."""
    # Nothing else may start threads beside them.
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", PROGRAM, library]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return [int(word) for word in run.stdout.split()]


def test_kernels_start_helpers_once_and_anew_after_a_fork() -> None:
    assert started("numpy") == [1, 0, 1]


def test_kernels_use_the_workers_of_torch_where_it_is_loaded_and_not_after_a_fork() -> None:
    assert started("torch") == [0, 0, 1]


def test_kernels_start_helpers_where_openmp_has_no_worker_to_give() -> None:
    assert started("torch", OMP_THREAD_LIMIT="1") == [1, 0, 1]
