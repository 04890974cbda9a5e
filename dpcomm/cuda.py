"""The CUDA kernels, loaded when the first tensor on a GPU comes. Nothing here waits for the GPU."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

from dpcomm import _core, arrays


def kernels() -> Any:
    """The module of the kernels. Raises EnvironmentError where dpcomm was built without them."""
    try:
        from dpcomm import _cuda
    except ImportError as error:
        raise _core.EnvironmentError(
            "dpcomm was built without CUDA: install nvcc, then build it again "
            "(pip install --no-build-isolation -e .), or pass arrays on the CPU"
        ) from error
    return _cuda


def place(view: arrays.Array) -> tuple[int, int]:
    """Index of the array's device, and the address of torch's current stream there.

    Raises ValueError for an array that is not on a CUDA device.
    """
    if not view.device.startswith("cuda"):
        raise ValueError(f"an array is on {view.device}: pass an array on the CPU or a CUDA GPU")
    index = int(view.device.partition(":")[2] or 0)
    return index, sys.modules["torch"].cuda.current_stream(index).cuda_stream


@lru_cache(maxsize=64)
def _plan(device: int, columns: tuple[int, ...], rows: int, dtype: str) -> Any:
    """How the kernel divides its work: the addresses do not matter, and training repeats shapes."""
    return kernels().clip_plan(device, [(0, count, count) for count in columns], rows, dtype)


def add_noise_(
    view: arrays.Array, noise: _core.NoiseSpec, offset: int, scale: float, counter: int = 0
) -> None:
    """`dpcomm.add_noise_` for a buffer on a GPU. What is at the address `counter` there, a uint64,
    is added to the noise's step when the kernel runs: a CUDA graph repeats all else."""
    kernels().add_noise(place(view), view.pointer, view.count, offset, noise, scale, counter)


def update_(
    views: list[arrays.Array],
    noise: _core.NoiseSpec,
    offset: int,
    scale: float,
    optimizer: _core.Sgd | _core.Adam,
    counter: int = 0,
    adam_corrections: int = 0,
) -> None:
    """`dpcomm.sgd_update_` and `dpcomm.adam_update_` on a GPU: gradient, parameters and states.

    counter: as in `add_noise_`; adam_corrections: likewise the address of two float32, lr over
    1 - beta1^count and 1 over the root of 1 - beta2^count.
    """
    gradient, parameters, *states = (view.pointer for view in views)
    kernels().update(place(views[0]), gradient, parameters, states, views[0].count, offset, noise,
                     scale, optimizer, counter, adam_corrections)  # fmt: skip


def clip_sum(
    like: Any,
    view: arrays.Array,
    blocks: list[tuple[int, int, int]],
    clip_norm: float,
    stability: float,
    sample_norms: Any = None,
) -> tuple[Any, Any, Any]:
    """`dpcomm.clip_sum` on a GPU: total, norms, and the count as a tensor, so that nothing waits.

    like: a tensor on the device; view: the first gradients; blocks: address, columns and row stride
        of each gradients; sample_norms: where these are one of several layers, the norms [B] over
        all of them: a sample that is not finite there adds nothing.
    """
    rows = view.shape[0]
    at = place(view)
    columns = tuple(count for _, count, _ in blocks)
    plan = _plan(at[0], columns, rows, view.dtype)
    total = arrays.empty(like, (sum(columns),), "float32")
    norms = arrays.empty(like, (rows,), "float64")
    nonfinite = arrays.empty(like, (), "int64")
    workspace = arrays.empty(like, (plan.workspace_bytes,), "uint8")
    pointers = [arrays.pointer(x) for x in (total, norms, nonfinite, workspace)]
    if sample_norms is not None:
        pointers.append(arrays.pointer(sample_norms))
    kernels().clip_sum(at, plan, blocks, rows, view.dtype, clip_norm, stability, *pointers)
    return total, norms, nonfinite
