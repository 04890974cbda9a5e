"""The SIMT machine catches what a GPU leaves undefined, and does not cry wolf."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from built import build

FAULTS = Path(__file__).with_name("faults.cu")

# fault -> the build that must catch it, and what it must say
CAUGHT = {
    "awaits_nobody": ("none", r"faults\.cu:\d+: waits for a value that does not come"),
    "barriers_in_two_branches": ("none", r"divergent barrier.*faults\.cu:\d+.*faults\.cu:\d+"),
    "divergent_barrier": ("none", r"divergent barrier.*faults\.cu:\d+.*faults\.cu:\d+"),
    "divergent_shuffle": ("none", r"divergent warp.*faults\.cu:\d+.*thread 16 has returned"),
    "dynamic_shared_too_small": ("none", r"wrote past its 252 bytes of dynamic shared memory"),
    "forgotten_tail": ("none", r"wrong result: out\[0\] = -?nan"),
    "missing_barrier": ("none", r"wrong result: out\[0\] = -?nan"),
    "missing_copy_wait": ("none", r"wrong result: out\[0\] = -?nan"),
    "missing_second_barrier": ("none", r"wrong result"),
    "partial_mask": ("none", r"faults\.cu:\d+: the mask of a warp collective must be all lanes"),
    "return_before_a_barrier": ("none", r"divergent barrier.*thread 63 has returned"),
    "shared_never_written": ("none", r"wrong result: out\[0\] = -?nan"),
    "misaligned_vector": ("address", r"faults\.cu:\d+.*misaligned address"),
    "read_past_the_end": ("address", r"heap-buffer-overflow"),
    "static_shared_too_small": ("address", r"index 32 out of bounds"),
    "write_past_the_end": ("address", r"heap-buffer-overflow"),
    "missing_atomic": ("thread", r"data race"),
    "missing_grid_barrier": ("thread", r"data race"),
    "missing_warp_barrier": ("thread", r"data race"),
}
BUILDS = ("none", "address", "thread")


@pytest.fixture(scope="session")
def run():
    def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        # GCC's sanitizers want the old layout of the address space.
        folder = build(f"simt_{program.split('_')[1]}") / "simt"
        command = ["setarch", "-R", str(folder / program)]
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=120, check=False
        )

    return run


def test_every_fault_has_its_test():
    assert set(re.findall(r'name == "(\w+)"', FAULTS.read_text())) == CAUGHT.keys()


@pytest.mark.parametrize(
    ("fault", "sanitizer"),
    [(fault, sanitizer) for fault, (sanitizer, _) in CAUGHT.items()],
)
def test_a_planted_fault_is_caught(run, fault, sanitizer):
    done = run(f"faults_{sanitizer}", fault, "planted")
    assert done.returncode != 0
    assert re.search(CAUGHT[fault][1], done.stdout + done.stderr)


@pytest.mark.parametrize("sanitizer", BUILDS)
def test_a_sound_kernel_passes(run, sanitizer):
    for fault in CAUGHT:
        done = run(f"faults_{sanitizer}", fault, "sound")
        assert done.returncode == 0, fault + done.stdout + done.stderr


@pytest.mark.parametrize("sanitizer", BUILDS)
def test_the_kernels_are_clean(run, sanitizer):
    done = run(f"kernels_{sanitizer}")
    assert done.returncode == 0, done.stdout + done.stderr
    # Each way to divide the work was taken: one block a team, several, and rows that do not fit.
    assert re.search(r"teams of 1,", done.stdout)
    assert re.search(r"teams of [2-4],", done.stdout)
    assert re.search(r"teams of 0,", done.stdout)
