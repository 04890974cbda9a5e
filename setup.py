"""Builds the extension modules with CMake; everything else is declared in pyproject.toml.

The environment variable CMAKE_ARGS adds to CMake's arguments: CMAKE_ARGS=-DDPCOMM_CUDA=OFF.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures once into a fixed folder, so that a second build compiles only what changed."""

    def run(self) -> None:
        build = ROOT / "build" / sys.implementation.cache_tag
        destination = ROOT if self.inplace else Path(self.build_lib).resolve()
        python = f"-DPython_EXECUTABLE={sys.executable}"
        extra = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        subprocess.check_call(["cmake", "-G", "Ninja", "-S", ROOT, "-B", build, python, *extra])
        subprocess.check_call(["cmake", "--build", build])
        subprocess.check_call(["cmake", "--install", build, "--prefix", destination])


setup(ext_modules=[Extension("dpcomm._core", [])], cmdclass={"build_ext": CMakeBuild})
