"""The engine over threads, built and run under the sanitizers."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from groups import ROOT

LAYERS = ("base", "schedule", "transport", "engine")


def build(folder, *flags):
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    sources = [
        str(path)
        for layer in LAYERS
        for path in sorted((ROOT / "csrc" / layer).glob("*.cpp"))
        if path.name != "gpu.cpp" and not path.match("mpi*.cpp")
    ]
    binary = folder / "ranks"
    command = ["g++", "-std=c++20", "-O1", "-g", "-pthread", *flags, f"-I{ROOT / 'csrc'}"]
    native = str(ROOT / "tests" / "native" / "ranks.cpp")
    subprocess.run([*command, native, *sources, "-o", str(binary)], check=True)
    return binary


def run(binary, *arguments):
    return subprocess.run([binary, *arguments], capture_output=True, text=True, timeout=300)


def test_threads_are_clean_and_a_planted_race_is_caught(tmp_path):
    binary = build(tmp_path, "-fsanitize=thread")
    clean = run(binary)
    assert clean.returncode == 0, clean.stderr
    raced = run(binary, "race")
    assert "WARNING: ThreadSanitizer: data race" in raced.stderr


def test_addresses_and_behaviour_are_defined(tmp_path):
    binary = build(tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    clean = run(binary)
    assert clean.returncode == 0, clean.stderr
