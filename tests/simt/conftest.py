"""Two devices for the kernels: CUDA's threads on the CPU (csrc/simt/), and a GPU where one is."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from built import build


class Simt:
    """Device memory is NumPy's, and a device as small as a test wants."""

    place = (0, 0)

    def __init__(self) -> None:
        from dpcomm import _core  # noqa: F401  (brings the errors)

        path = next((build("simt") / "simt").glob("_simt.*.so"))
        spec = importlib.util.spec_from_file_location("_simt", path)
        assert spec is not None
        assert spec.loader is not None
        self.kernels: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.kernels)

    def upload(self, array: np.ndarray) -> np.ndarray:
        return array

    def pointer(self, array: np.ndarray) -> int:
        return array.ctypes.data

    def download(self, array: np.ndarray) -> np.ndarray:
        return array


class Cuda:
    place = (0, 0)

    def __init__(self) -> None:
        import torch

        from dpcomm import _cuda

        self.torch: ModuleType = torch
        self.kernels = _cuda

    def upload(self, array: np.ndarray) -> Any:
        return self.torch.from_numpy(array.copy()).cuda()

    def pointer(self, array: Any) -> int:
        return array.data_ptr()

    def download(self, array: Any) -> np.ndarray:
        return array.cpu().numpy()


def gpus() -> int:
    try:
        from dpcomm import _core, _cuda  # noqa: F401
    except ImportError:
        return 0
    return _cuda.device_count()


@pytest.fixture(scope="session", params=[Simt, Cuda] if gpus() else [Simt])
def device(request: pytest.FixtureRequest) -> Any:
    return request.param()


@dataclass(frozen=True)
class Sized:
    """A device as launchers see it: the SIMT machine takes any size, a GPU has its own."""

    multiprocessors: int
    shared_bytes: int

    def apply(self, device: Any) -> None:
        if isinstance(device, Simt):
            device.kernels.set_device(self.multiprocessors, self.shared_bytes)
