"""The Gaussian transform against double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpcomm import _core


def exact(a: int, b: int) -> tuple[float, float]:
    radius = math.sqrt(-2 * math.log((a + ((b & 255) + 0.5) / 256) / 2**32))
    signed = b - 2**32 if b >> 31 else b
    angle = ((signed >> 9) + 0.5) / 2**22 * math.pi / 2
    sign = -1 if b >> 8 & 1 else 1
    return sign * radius * math.cos(angle), radius * math.sin(angle)


EDGES = [0, 1, 255, 256, 2**16, 2**24, 2**31 - 1, 2**31, 3037000499, 2**32 - 2**12, 2**32 - 1]


def test_pair_is_right_to_a_few_units_in_the_last_place() -> None:
    rng = np.random.default_rng(1)
    words = [(a, b) for a in EDGES for b in EDGES]
    words += rng.integers(0, 2**32, (20000, 2)).tolist()
    for a, b in words:
        first, second = _core.gaussian_pair(a, b)
        radius = math.hypot(*exact(a, b))
        tolerance = 4 * 2**-24 * np.abs(exact(a, b)) + 2**-30 * radius
        # Just below u = 1 the float of u has a grain of 2^-24.
        tolerance += 2**-24 / max(radius, 2**-12)
        assert np.all(np.abs(np.subtract((first, second), exact(a, b))) <= tolerance), (a, b)


def test_tail_reaches_seven_and_a_half_sigma() -> None:
    largest = math.hypot(*_core.gaussian_pair(0, 0))
    assert largest == pytest.approx(math.sqrt(82 * math.log(2)), rel=1e-6)


def test_signs_are_all_four() -> None:
    signs = {tuple(np.sign(_core.gaussian_pair(7, b))) for b in (0, 1 << 8, 0xFFFFFE00, 0xFFFFFF00)}
    assert len(signs) == 4
