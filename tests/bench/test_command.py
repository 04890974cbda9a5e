"""The microbenchmark as a command: its records, its check, its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from groups import MPIRUN, environment, results, run_threads

from dpcomm.bench import record, sweep


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def bench(*arguments: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    command = [str(MPIRUN), "-np", str(ranks), sys.executable, "-m", "dpcomm.bench", *arguments]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=100, check=False
    )


def test_every_algorithm_at_every_size_is_measured_and_right(tmp_path):
    path = tmp_path / "records.jsonl"
    run = bench("all_reduce", "-b", "8", "-e", "4K", "-f", "16", "-n", "3", "-w", "1",
                "--algo", "ring,tree", "-J", str(path))  # fmt: skip
    assert run.returncode == 0, run.stderr
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["bytes"], r["algo"]) for r in records] == [
        (size, algo) for size in (8, 128, 2048) for algo in ("ring", "tree")
    ]
    for measured in records:
        assert list(measured) == record.COLUMNS
        assert measured["ranks"] == 2
        assert measured["wrong"] == 0
        assert measured["time_us"] > 0
    assert len([line for line in run.stdout.splitlines() if line[0] != "#"]) == len(records)


def test_peers_and_the_model_stand_beside_ours(tmp_path):
    path = tmp_path / "records.jsonl"
    run = bench("all_reduce", "-b", "4K", "-e", "4K", "-n", "3", "-w", "1", "--algo", "ring",
                "--peers", "mpi,gloo", "--model", "-J", str(path), "--plot",
                str(tmp_path / "bus.png"))  # fmt: skip
    assert run.returncode == 0, run.stderr
    ours, *peers = [json.loads(line) for line in path.read_text().splitlines()]
    assert ours["algo"] == "ring"
    assert ours["model_us"] > 0
    assert [peer["peer"] for peer in peers] == ["mpi", "gloo"]
    for peer in peers:
        assert "algo" not in peer
        assert "model_us" not in peer
        assert peer["wrong"] == 0
    assert (tmp_path / "bus.png").stat().st_size > 0


def test_the_tuner_explains_itself_without_a_sweep():
    run = bench("all_reduce", "--explain")
    assert run.returncode == 0, run.stderr
    assert "µs a message" in run.stdout
    assert "any longer B" in run.stdout


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_measured(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")

    def body(comm):
        return list(sweep.run(comm, sweep.Sweep("all_reduce", (96,), dtype, iterations=2)))

    for (measured,) in results(run_threads(3, body)):
        assert (measured.dtype, measured.count, measured.wrong) == (dtype, 48, 0)


@pytest.mark.parametrize(
    "op", ["reduce_scatter", "all_gather", "all_to_all", "broadcast", "reduce"]
)
def test_every_operation_runs_and_is_checked(op):
    def body(comm):
        return list(sweep.run(comm, sweep.Sweep(op, (96,), iterations=2, warmup=0)))

    for (measured,) in results(run_threads(3, body)):
        assert (measured.op, measured.bytes, measured.wrong) == (op, 96, 0)


def test_a_wrong_result_is_counted_on_every_rank():
    class Sabotaged:
        def __init__(self, comm):
            self.comm = comm

        def __getattr__(self, name):
            return getattr(self.comm, name)

        def all_reduce(self, tensor, **options):
            self.comm.all_reduce(tensor, **options)
            if tensor.dtype.name == "float32" and self.comm.rank == 1:
                tensor[3] += 1

    def body(comm):
        return list(sweep.run(Sabotaged(comm), sweep.Sweep("all_reduce", (64,), iterations=2)))

    assert [measured.wrong for (measured,) in results(run_threads(2, body))] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-b", "8K", "-e", "4K"), "-b 8192 is above -e 4096"),
        (("-f", "1"), "give a factor above 1"),
        (("--algo", "rings"), "--algo rings: all_reduce has naive, ring"),
        (("-b", "eight"), "'eight' is no size"),
        (("--peers", "ucc"), "--peers ucc: use mpi, gloo, nccl"),
        (("--peers", "nccl"), "--peers nccl: it is measured on GPUs; use --transport nccl"),
        (("--peers", "mpi", "--transport", "nccl"), "on the CPU; use --transport shm or mpi"),
    ],
)
def test_a_wrong_command_says_so_once_with_exit_code_2(arguments, message):
    run = bench("all_reduce", *arguments)
    assert run.returncode == 2
    assert run.stderr.count(message) == 1
