"""What the core needs to know of an array, whichever library made it.

The one place that tells a torch tensor, a NumPy array and a stranger apart. Torch is recognised by
name and never imported: whoever holds a tensor has imported it.
"""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpcomm import _core

BYTES = {  # of an element, by the names of dtypes here
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int64": 8,
    "int32": 4,
    "uint8": 1,
}


@dataclass(slots=True)  # frozen would take a microsecond more to make, of each collective
class Array:
    """A view of memory that `source` owns: keep it alive as long as the pointer is in use."""

    source: Any
    pointer: int
    shape: tuple[int, ...]
    dtype: str  # "float32", "bfloat16", …
    contiguous: bool  # in row-major order, without gaps
    device: str  # "cpu", "cuda:0", …
    writable: bool

    @property
    def strides(self) -> tuple[int, ...]:
        """In elements, not bytes."""
        if _is_torch(self.source):
            return tuple(self.source.stride())
        return tuple(stride // self.source.itemsize for stride in self.source.strides)

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """0 for a dtype that no collective takes."""
        return self.count * BYTES.get(self.dtype, 0)


def _is_torch(array: Any) -> bool:
    return _is_tensor(type(array))  # type: ignore[arg-type]  # mypy takes classes for unhashable


@functools.cache
def _is_tensor(kind: Any) -> bool:
    return any(c.__module__ == "torch" and c.__name__ == "Tensor" for c in kind.__mro__)


@functools.cache
def _name(dtype: Any) -> str:
    return dtype.name if isinstance(dtype, np.dtype) else str(dtype).removeprefix("torch.")


def describe(array: Any) -> Array:
    """Describes a torch tensor, a NumPy array, or anything with DLPack, without a copy.

    Raises TypeError for what is no array, or is one that NumPy cannot view through DLPack.
    """
    if _is_torch(array):
        return Array(
            source=array,
            pointer=array.data_ptr(),
            shape=tuple(array.shape),
            dtype=_name(array.dtype),
            contiguous=array.is_contiguous(),
            device="cpu" if array.is_cpu else str(array.device),
            writable=True,
        )
    if isinstance(array, np.ndarray):
        flags = array.flags
        return Array(
            source=array,
            pointer=_core.array_pointer(array),
            shape=array.shape,
            dtype=_name(array.dtype),
            contiguous=flags.c_contiguous,
            device="cpu",
            writable=flags.writeable,
        )
    if not hasattr(array, "__dlpack__"):
        raise TypeError(
            f"{type(array).__name__} is not an array: "
            "pass a torch tensor, a NumPy array or an object with __dlpack__"
        )
    try:
        viewed = np.from_dlpack(array)
    except (BufferError, RuntimeError) as error:
        kind = type(array).__name__
        raise TypeError(f"{kind} cannot be viewed through DLPack: {error}") from error
    return describe(viewed)


def buffer(array: Any, name: str, dtypes: tuple[str, ...], gpu: bool = False) -> Array:
    """Describes an array that a kernel will write: contiguous, writable, of one of `dtypes`.

    gpu: whether it may be on a CUDA GPU, not only on the CPU.

    Raises ValueError, with `name` and the fix, for any other.
    """
    described = describe(array)
    if described.device != "cpu" and not (gpu and described.device.startswith("cuda")):
        places = "the CPU or a CUDA GPU" if gpu else "the CPU"
        raise ValueError(f"{name} is on {described.device}: pass an array on {places}")
    if described.dtype not in dtypes:
        raise ValueError(f"{name} has dtype {described.dtype}: convert it to {' or '.join(dtypes)}")
    if not described.contiguous:
        raise ValueError(
            f"{name} has strides {described.strides} for shape {described.shape}: "
            "pass a contiguous array (it is changed in place, so no copy is made)"
        )
    if not described.writable:
        raise ValueError(f"{name} is read-only: pass a writable array (np.array(x) copies)")
    return described


def pointer(array: Any) -> int:
    """The address of a torch tensor or a NumPy array."""
    return array.data_ptr() if _is_torch(array) else _core.array_pointer(array)


def empty(like: Any, shape: int | tuple[int, ...], dtype: str) -> Any:
    """A new array of `like`'s library and device: a torch tensor for one, else a NumPy array."""
    if _is_torch(like):
        return like.new_empty(shape, dtype=getattr(sys.modules["torch"], dtype))
    return np.empty(shape, dtype)
