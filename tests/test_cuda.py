"""What a user without the right device or build is told."""

from __future__ import annotations

import sys

import pytest

import dpcomm
from dpcomm import cuda

torch = pytest.importorskip("torch")


def test_an_array_on_neither_cpu_nor_cuda_is_refused():
    refusal = "is on meta: pass an array on the CPU or a CUDA GPU"
    with pytest.raises(ValueError, match=refusal):
        dpcomm.clip_sum(torch.empty(2, 3, device="meta"), 1.0)
    with pytest.raises(ValueError, match=refusal):
        dpcomm.add_noise_(torch.empty(3, device="meta"), 1.0, bytes(32), 0)


def test_a_build_without_cuda_says_how_to_get_it(monkeypatch):
    monkeypatch.delattr(dpcomm, "_cuda", raising=False)
    monkeypatch.setitem(sys.modules, "dpcomm._cuda", None)
    with pytest.raises(dpcomm.EnvironmentError, match="install nvcc, then build it again"):
        cuda.kernels()


def test_the_kernels_load_without_a_driver():
    pytest.importorskip("dpcomm._cuda", reason="built without nvcc")
    assert cuda.kernels().device_count() == torch.cuda.device_count()
