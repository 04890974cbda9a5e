"""Ranks of several hosts: within a host through shared memory, between hosts through MPI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from groups import MPIRUN, environment, mpirun

PROGRAMS = Path(__file__).parent / "programs"


@pytest.mark.parametrize("hosts", ["0,0,1,1", "0,1,0,1,0", "3,3,3,1", "0,0,0,1,2,2,2"])
def test_every_schedule_holds_on_hosts_of_any_shape(hosts, monkeypatch):
    monkeypatch.setenv("DPCOMM_HOSTS", hosts)
    size = hosts.count(",") + 1
    output = mpirun(size, PROGRAMS / "hosts.py")
    assert f"{size} ranks on {len(set(hosts) - {','})} hosts hold" in output


@pytest.mark.parametrize(
    ("hosts", "message"),
    [("0,1,1", "DPCOMM_HOSTS names 3 hosts for 2 ranks"), ("a,b", "is no list of numbers")],
)
def test_a_wrong_list_of_hosts_is_refused(hosts, message):
    command = [str(MPIRUN), "-np", "2", sys.executable, str(PROGRAMS / "hosts.py")]
    run = subprocess.run(
        command,
        env=environment(DPCOMM_HOSTS=hosts),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode != 0
    assert message in run.stderr + run.stdout


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_library_s_own_all_reduce_is_an_algorithm_by_name(size):
    output = mpirun(size, PROGRAMS / "vendor.py")
    assert f"MPI_Allreduce of {size} ranks holds" in output
