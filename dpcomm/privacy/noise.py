"""Gaussian noise that is a pure function of (key, step, element).

The noise of an element is the same whatever the range it is drawn in, the number of ranks or
threads, the processor or the device. Its magnitude is right to 7.5 standard deviations.

The noise is float32 and so is the sum it is added to. Like every sampler in floating point it
approximates the real Gaussian of the proofs; the accountants do not charge for that difference.
"""

from __future__ import annotations

import os
from typing import Any

from dpcomm import _core, arrays, cuda


def new_key() -> bytes:
    """32 secret bytes from the operating system. Draw one for each launch; never store it."""
    return os.urandom(32)


def add_noise_(
    buffer: Any,
    std: float,
    key: bytes,
    step: int,
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
    step: never use one twice with the same key.
    generator: "chacha20", cryptographically secure (RFC 8439), or "philox" (Philox4x32-10), faster
        and not secure.

    Returns `buffer`. Raises ValueError for another dtype, a buffer with gaps, a negative std or a
    key of another length.
    """
    view = arrays.buffer(buffer, "buffer", ("float32",), gpu=True)
    spec = _core.NoiseSpec(key, step, std, generator)
    if view.device != "cpu":
        cuda.add_noise_(view, spec, offset, scale)
        return buffer
    _core.add_noise(view.pointer, view.count, offset, spec, scale, threads=threads)
    return buffer
