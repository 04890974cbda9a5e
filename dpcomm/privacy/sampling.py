"""Poisson sampling by global record id."""

from __future__ import annotations

import numpy as np

from dpcomm import _core


def poisson_sample(key: bytes, step: int, sample_rate: float, begin: int, end: int) -> np.ndarray:
    """The ids in [begin, end) that `step` takes, each with probability `sample_rate`, ascending.

    The ranks' samples are one sample: the union over any partition of the ids is the same.
    key: 32 bytes that all ranks share (`dpcomm.privacy.noise.new_key`); it may be the noise's.

    Returns int64 ids. The probability is never above `sample_rate`, and at most 2^-31 of it below.
    Raises ValueError for a rate that is neither 0 nor in [2^-30, 1], or ids out of [0, 2^62].
    """
    return _core.poisson_sample(key, step, sample_rate, begin, end)
