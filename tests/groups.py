"""Groups of ranks for tests: threads of this process, or programs under a launcher."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpcomm import _core
from dpcomm.comm import Communicator

ROOT = Path(__file__).resolve().parent.parent
MPIRUN = Path(sys.executable).parent / "mpirun"


def run_threads(
    size: int, body: Callable[[Communicator], Any], timeout: float = 30
) -> list[Any | Exception]:
    """What `body` returns, or raises, on each of `size` ranks that are threads."""
    transports = _core.local_transports(size, timeout)
    outcomes: list[Any] = [None] * size

    def rank_body(rank: int) -> None:
        # The rank holds the only reference: when it is done, it has left.
        transport, transports[rank] = transports[rank], None
        try:
            outcomes[rank] = body(Communicator(_core.Communicator(transport)))
        except Exception as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=rank_body, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def results(outcomes: list[Any]) -> list[Any]:
    """The outcomes, if none is an error."""
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return outcomes


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **extra}


def mpirun(
    size: int, program: Path, *arguments: str, timeout: float = 300, check: bool = True
) -> str:
    """The output of a program under mpirun that must end with exit code 0; without `check`, the
    output and the errors of one that may end with any."""
    command = [MPIRUN, "-np", str(size), sys.executable, program, *arguments]
    done = subprocess.run(
        [str(part) for part in command],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if not check:
        return done.stdout + done.stderr
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def all_fail(outcomes: list[Any], kind: type[BaseException], *texts: str) -> None:
    """Every rank ended with this error, and each says all of these texts."""
    for rank, outcome in enumerate(outcomes):
        assert isinstance(outcome, kind), f"rank {rank}: {outcome!r}"
        for text in texts:
            assert text in str(outcome), f"rank {rank}: {outcome}"
