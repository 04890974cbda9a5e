"""However one rank ends, all end: soon, with a code, a message that names it, and nothing left.

Once with three ranks; `pytest -m slow` twenty times each with two, three and eight.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from groups import MPIRUN, environment

PROGRAM = Path(__file__).parent / "programs" / "endless.py"
VICTIM = 1
ONCE, MANY = (3, 0), [(size, turn) for size in (2, 3, 8) for turn in range(20)]


@pytest.fixture(
    params=[ONCE, *(pytest.param(case, marks=pytest.mark.slow) for case in MANY)],
    ids=lambda case: f"{case[0]}-{case[1]}",
)
def size(request) -> int:
    return request.param[0]


def codes_of(size: int, victim: int, code: int) -> list[int]:
    """The victim's exit code, and that of all who lost it."""
    return [code if rank == victim else 4 for rank in range(size)]


@dataclass
class Running:
    """A job under way: its processes, as started by the test, and the pids of its ranks."""

    processes: list[subprocess.Popen]
    pids: list[int] = field(default_factory=list)

    def end(self) -> tuple[list[int], str]:
        """Exit codes and output of a job that must end within ten seconds, all of it."""
        deadline = time.monotonic() + 10
        output = ""
        for process in self.processes:
            text, _ = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            output += text
        while any(alive(pid) for pid in self.pids):
            assert time.monotonic() < deadline, f"ranks still run\n{output}"
            time.sleep(0.05)
        return [process.returncode for process in self.processes], output


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def left_behind() -> set[str]:
    """What a job could leave on the host: named shared memory and rendezvous sockets."""
    sockets = {
        line for line in Path("/proc/net/unix").read_text().splitlines() if "@dpcomm" in line
    }
    return {str(path) for path in Path("/dev/shm").iterdir()} | sockets


def mapped() -> set[str]:
    """Named shared memory that a process uses."""
    found: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = maps.read_text().splitlines()
        except OSError:  # it ended meanwhile
            continue
        found |= {line[line.index("/dev/shm/") :] for line in lines if "/dev/shm/" in line}
    return found


def start(
    launcher: str,
    folder: Path,
    size: int,
    transport: str = "shm",
    failing: int = -1,
    parts: int = 1,
) -> Running:
    program = [sys.executable, str(PROGRAM), str(folder), transport, str(failing), str(parts)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    if launcher == "mpirun":
        command = [str(MPIRUN), "-np", str(size), *program]
        job = Running([subprocess.Popen(command, env=environment(), **pipes)])
    else:  # as torchrun sets it, but without an agent that would end the others
        ranks = []
        for rank in range(size):
            variables = environment(
                RANK=str(rank),
                WORLD_SIZE=str(size),
                MASTER_ADDR="test",
                MASTER_PORT=str(os.getpid()),
            )
            ranks.append(subprocess.Popen(program, env=variables, **pipes))
        job = Running(ranks)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("[0-9]"))) < size:
        assert time.monotonic() < deadline, "the job never got under way"
        assert failing >= 0 or all(process.poll() is None for process in job.processes)
        time.sleep(0.02)
    job.pids = [int((folder / str(rank)).read_text()) for rank in range(size)]
    return job


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    before = left_behind()
    yield
    deadline = time.monotonic() + 5
    while left := left_behind() - before - mapped():  # what others use is theirs
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_mpirun_ends_all_ranks_when_one_is_killed(tmp_path, size):
    job = start("mpirun", tmp_path, size)
    os.kill(job.pids[VICTIM], signal.SIGKILL)
    codes, output = job.end()
    assert codes != [0]
    # MPICH's mpirun kills the others before they can speak; it tells pids, and this whose they are.
    assert f"rank {VICTIM} is pid {job.pids[VICTIM]}" in output, output
    assert "BAD TERMINATION" in output or f"lost rank {VICTIM}" in output, output


def test_without_a_launcher_the_others_notice_that_one_is_killed_and_name_it(tmp_path, size):
    job = start("plain", tmp_path, size)
    os.kill(job.pids[VICTIM], signal.SIGKILL)
    codes, output = job.end()
    assert codes == codes_of(size, VICTIM, -signal.SIGKILL), output
    assert f"rank {VICTIM} was killed or crashed (pid {job.pids[VICTIM]})" in output
    for rank in set(range(size)) - {VICTIM}:
        assert f"dpcomm: rank {rank}/{size} (host " in output


@pytest.mark.parametrize("transport", ["shm", "mpi"])
def test_mpirun_ends_all_ranks_when_one_raises(tmp_path, size, transport):
    job = start("mpirun", tmp_path, size, transport, VICTIM)
    codes, output = job.end()
    assert codes != [0], output
    assert f"dpcomm: rank {VICTIM}/{size} (host " in output
    assert "RuntimeError: planted" in output


def test_without_a_launcher_the_others_end_when_one_raises_and_say_why(tmp_path, size):
    codes, output = start("plain", tmp_path, size, failing=VICTIM).end()
    assert codes == codes_of(size, VICTIM, 1), output
    assert f"rank {VICTIM} ended the job: RuntimeError: planted" in output


@pytest.mark.parametrize("transport", ["shm", "mpi"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_mpirun_ends_all_ranks(tmp_path, size, transport, number):
    job = start("mpirun", tmp_path, size, transport)
    job.processes[0].send_signal(number)
    codes, output = job.end()
    assert codes != [0], output
    assert re.search(rf"dpcomm: rank \d/{size} \(host ", output), output
    assert "sys.excepthook" not in output, output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_one_rank_ends_all_ranks(tmp_path, size, number):
    job = start("plain", tmp_path, size)
    os.kill(job.pids[VICTIM], number)
    codes, output = job.end()
    assert codes == codes_of(size, VICTIM, 130), output
    assert f"rank {VICTIM} ended the job: interrupted" in output


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGKILL])
def test_without_a_launcher_the_end_of_one_rank_ends_those_of_another_split(tmp_path, size, number):
    if size < 3:
        pytest.skip("a part of one rank waits for nobody")
    job = start("plain", tmp_path, size, failing=VICTIM if number is None else -1, parts=2)
    if number == signal.SIGKILL:  # rank 2, which rank 0 waits for, in the part without rank 1
        os.kill(job.pids[2], number)
    elif number is not None:
        os.kill(job.pids[VICTIM], number)
    codes, output = job.end()
    if number == signal.SIGKILL:
        assert codes == codes_of(size, 2, -signal.SIGKILL), output
        assert f"rank 2 was killed or crashed (pid {job.pids[2]})" in output, output
        return
    assert codes == codes_of(size, VICTIM, 1 if number is None else 130), output
    reason = "RuntimeError: planted" if number is None else "interrupted"
    assert output.count(f"rank {VICTIM} ended the job: {reason}") == size - 1, output


@pytest.mark.parametrize(("level", "said"), [("WARN", 0), ("INFO", 1), ("TRACE", 3)])
def test_dpcomm_debug_says_which_collectives_run(level, said):
    code = "import dpcomm; comm = dpcomm.init(); [comm.barrier() for _ in range(3)]"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(DPCOMM_DEBUG=level),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("barrier #") == said, done.stderr
