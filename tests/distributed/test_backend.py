"""torch.distributed over dpcomm: every operation, DDP, what is refused, and how torch finds it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from groups import MPIRUN, ROOT, environment, results, run_threads

from dpcomm import UsageError
from dpcomm.distributed import ProcessGroup

PROGRAMS = Path(__file__).parent / "programs"


def run(command: list[str], **extra: str) -> str:
    variables = environment(PYTHONWARNINGS="ignore", OMP_NUM_THREADS="1", **extra)
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def torchrun(size: int, program: str, *arguments: str) -> str:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return run([*launcher, f"--nproc-per-node={size}", str(PROGRAMS / program), *arguments])


@pytest.mark.parametrize(("size", "transport"), [(1, "local"), (2, "shm"), (4, "shm")])
def test_every_collective_under_torchrun(size, transport):
    assert f"{transport} of {size} ranks holds" in torchrun(size, "collectives.py")


def test_every_collective_under_mpirun():
    program = str(PROGRAMS / "collectives.py")
    output = run([str(MPIRUN), "-np", "3", sys.executable, program, "dpcomm://"])
    assert "shm of 3 ranks holds" in output


@pytest.mark.parametrize("size", [2, 3])
def test_ddp_trains_to_the_parameters_of_gloo(size):
    assert "the same parameters" in torchrun(size, "ddp.py")


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_rank_that_dies_in_ddp_ends_the_others_by_name(when):
    """Started as torchrun does, but without an agent that would end the others."""
    ranks = []
    for rank in range(2):
        variables = environment(
            RANK=str(rank),
            WORLD_SIZE="2",
            MASTER_ADDR="localhost",
            MASTER_PORT=str(20_000 + os.getpid() % 10_000),
        )
        command = [sys.executable, str(PROGRAMS / "ddp.py"), when]
        pipe = subprocess.PIPE
        ranks.append(subprocess.Popen(command, env=variables, stderr=pipe, text=True))
    _, said = ranks[0].communicate(timeout=60)
    assert ranks[0].returncode == 4, said
    assert ranks[1].wait(60) == -signal.SIGKILL
    assert re.search(r"dpcomm: rank 0/2 .*lost rank 1 in (all_reduce|broadcast)", said), said


def test_torch_finds_the_backend_where_dpcomm_is_installed(tmp_path):
    """By the entry point that pyproject.toml declares, as an installer writes it down."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    (declared,) = re.findall(r'^\[project.entry-points."torch.backends"\]\n(.+)$', pyproject, re.M)
    info = tmp_path / "dpcomm-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dpcomm\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\n" + declared.replace('"', "") + "\n")
    program = (
        "import sys, torch.distributed as dist\n"
        "assert not {'dpcomm.distributed', 'dpcomm._core'} & sys.modules.keys(), 'loaded early'\n"
        "dist.init_process_group('dpcomm', store=dist.HashStore(), rank=0, world_size=1)\n"
        "dist.barrier()\n"
        "print(type(dist.group.WORLD).__module__)"
    )
    output = run([sys.executable, "-c", program], PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert output.strip() == "dpcomm.distributed"


def refusal(act) -> str:
    def body(comm):
        with pytest.raises(UsageError) as error:
            act(ProcessGroup(comm))
        return str(error.value)

    return results(run_threads(1, body))[0]


def options(op) -> dist.AllreduceOptions:
    made = dist.AllreduceOptions()
    made.reduceOp = op
    made.asyncOp = False
    return made


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda g: g.allreduce([torch.ones(2)], options(dist.ReduceOp.PRODUCT)), "PRODUCT"),
        (lambda g: g.allreduce([torch.ones(2)], options(dist.ReduceOp.BAND)), "BAND"),
        (lambda g: g.allreduce([torch.ones(2, device="meta")]), "on meta"),
        (lambda g: g.allreduce([torch.ones(2).to_sparse()]), "sparse_coo"),
        (lambda g: g.allreduce([torch.ones(4, 4).t()[1:]]), r"strides \(1, 4\)"),
        (lambda g: g.allreduce([torch.ones(2) * 1j]).wait(), "complex64"),
        (lambda g: g.allreduce([torch.ones(2) > 0]).wait(), "bool"),
        (lambda g: g.send([torch.ones(2)], 0, 0), "send and recv are not offered"),
        (lambda g: g.gather([], [torch.ones(2)]), "gather is not offered: use all_gather"),
        (lambda g: g.allgather([[torch.ones(3)]], [torch.ones(2)]), "2, 3"),
        (lambda g: g.alltoall([], []), "one for each rank"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(act, message):
    assert re.search(message, refusal(act))


def test_collectives_of_a_group_take_turns_with_those_on_its_thread():
    """A blocking call after asynchronous ones comes after them on every rank."""

    def body(comm):
        group, tensor = ProcessGroup(comm), torch.ones(100_000)
        for _ in range(5):
            group.allreduce([tensor])
        group.allreduce([tensor], options(dist.ReduceOp.SUM))
        return float(tensor[-1])

    assert results(run_threads(4, body)) == [4.0**6] * 4
