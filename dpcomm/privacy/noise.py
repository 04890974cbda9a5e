"""Gaussian noise that is a pure function of (key, step, element).

The noise of an element is the same whatever the range it is drawn in, the number of ranks or
threads, the processor or the device. Its magnitude is right to 7.5 standard deviations.

The noise is float32 and so is the sum it is added to. Like every sampler in floating point it
approximates the real Gaussian of the proofs; the accountants do not charge for that difference.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpcomm import _core, arrays, cuda


def new_key() -> bytes:
    """32 secret bytes from the operating system. Draw one for each launch; never store it."""
    return os.urandom(32)


def add_noise_(
    buffer: Any,
    std: float,
    key: bytes,
    step: Any,
    offset: int = 0,
    generator: str = "chacha20",
    *,
    scale: float = 1.0,
    threads: int = 1,
) -> Any:
    """Adds `std` times standard normal noise to `buffer` in place, then multiplies by `scale`.

    buffer: contiguous float32, of any shape, on the CPU or a GPU, whose first element is element
        `offset` of the whole.
    std: the noise multiplier times the sensitivity, of the sum; rounded up to float32.
    key: 32 bytes that all ranks share (`new_key`).
    step: never use one twice with the same key. An integer; or an array of one int64 beside
        `buffer`, which is read when the noise is drawn, and raised by one: a CUDA graph that
        captured the call draws other noise each time.
    generator: "chacha20", cryptographically secure (RFC 8439), or "philox" (Philox4x32-10), faster
        and not secure.

    Returns `buffer`. Raises ValueError for another dtype, a buffer with gaps, a negative std or a
    key of another length.
    """
    view = arrays.buffer(buffer, "buffer", ("float32",), gpu=True)
    counter = Counter(step, "step", view.device)
    spec = _core.NoiseSpec(key, counter.known, std, generator)
    if view.device != "cpu":
        cuda.add_noise_(view, spec, offset, scale, counter.address)
    else:
        _core.add_noise(view.pointer, view.count, offset, spec, scale, threads=threads)
    counter.advance()
    return buffer


@dataclass(frozen=True)
class Counter:
    """A number of a step: an integer, or an array of one int64 on `device`.

    Raises ValueError for any other.
    """

    value: Any
    name: str
    device: str

    def __post_init__(self) -> None:
        if self.is_array:
            view = arrays.buffer(self.value, self.name, ("int64",), gpu=True)
            if (view.count, view.device) != (1, self.device):
                raise ValueError(
                    f"{self.name} has {view.count} elements on {view.device}: pass an integer, or "
                    f"one int64 on {self.device}, where the buffer is"
                )

    @property
    def is_array(self) -> bool:
        return not isinstance(self.value, (int, np.integer))

    @property
    def known(self) -> int:
        """What the host knows of it: 0 of one on a GPU."""
        return 0 if self.address else int(self.value)

    @property
    def address(self) -> int:
        """Of one on a GPU, else 0."""
        on_gpu = self.is_array and self.device != "cpu"
        return arrays.describe(self.value).pointer if on_gpu else 0

    def advance(self) -> None:
        if self.is_array:
            self.value.__iadd__(1)
