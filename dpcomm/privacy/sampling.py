"""Poisson sampling by global record id, of batches that may be truncated."""

from __future__ import annotations

import hashlib

import numpy as np

from dpcomm import _core


def share(records: int, rank: int, size: int) -> tuple[int, int]:
    """The records, begin to end, that are this rank's: nearly equal parts, in order."""
    return records * rank // size, records * (rank + 1) // size


def poisson_sample(key: bytes, step: int, sample_rate: float, begin: int, end: int) -> np.ndarray:
    """The ids in [begin, end) that `step` takes, each with probability `sample_rate`, ascending.

    The ranks' samples are one sample: the union over any partition of the ids is the same.
    key: 32 bytes that all ranks share (`dpcomm.privacy.noise.new_key`); it may be the noise's.

    Returns int64 ids. The probability is never above `sample_rate`, and at most 2^-31 of it below.
    Raises ValueError for a rate that is neither 0 nor in [2^-30, 1], or ids out of [0, 2^62].
    """
    return _core.poisson_sample(key, step, sample_rate, begin, end)


def truncated_sample(
    key: bytes, step: int, sample_rate: float, records: int, most: int, begin: int, end: int
) -> np.ndarray:
    """As `poisson_sample`, of all `records`: where the step took more than `most`, those of a
    uniformly random `most` of them, the same for any partition of the ids."""
    ids = poisson_sample(key, step, sample_rate, 0, records)
    if len(ids) > most:
        # SHAKE256 of a secret is a secure stream; ties of 64 bits do not happen.
        seed = b"dpcomm truncated batch" + step.to_bytes(8, "little") + key
        order = np.frombuffer(hashlib.shake_256(seed).digest(8 * len(ids)), np.uint64)
        ids = np.sort(ids[np.argpartition(order, most)[:most]])
    first, last = np.searchsorted(ids, (begin, end))
    return ids[first:last]
