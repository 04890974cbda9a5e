"""The 63-bit key of a record: its order, shard and split follow from it, whatever the engine.

The key hashes the privacy unit, so that all records of a unit meet in one shard and one split. The
hash is no secret and no cryptography. Units that collide are bounded as one, so that one's record
may put out the other's: by chance that is one pair in 2^63, but whoever chooses an id can choose it
to collide. Ids are for their keeper to give, not for units to choose.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SPLIT_SALT = np.uint64(0x243F6A8885A308D3)  # the fraction of pi


def _mix(h: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of 64-bit words."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def of_words(words: np.ndarray, lengths: np.ndarray | int) -> np.ndarray:
    """Keys of rows of 64-bit words [n, width], of which `lengths` bytes count; int64 below 2^63."""
    lengths = np.broadcast_to(np.asarray(lengths, "<u8"), len(words))
    h = lengths * _GOLDEN
    for i in range(words.shape[1]):
        h = np.where(lengths > 8 * i, _mix((h ^ words[:, i]) + _GOLDEN), h)
    return (h >> np.uint64(1)).astype(np.int64)


def of_texts(text: bytes, lengths: np.ndarray) -> np.ndarray:
    """Keys of texts that lie end to end in `text`."""
    width = -(-int(lengths.max(initial=1)) // 8) * 8
    padded = np.zeros((len(lengths), width), np.uint8)
    padded[np.arange(width) < lengths[:, None]] = np.frombuffer(text, np.uint8)
    return of_words(padded.view("<u8"), lengths)


def is_test(keys: np.ndarray, share: float) -> np.ndarray:
    """The records whose unit falls into the test split: independent of order and shard."""
    return _mix(keys.astype("<u8") ^ _SPLIT_SALT) < np.uint64(int(share * 2**64))


def shard_of(keys: np.ndarray, shards: int) -> np.ndarray:
    return (_mix(keys.astype("<u8")) % np.uint64(shards)).astype(np.int32)
