"""What collectives do to a GPU's memory: to the bit what they do to the CPU's."""

from __future__ import annotations

import numpy as np
import pytest
from groups import results, run_threads

from dpcomm import UsageError, arrays

FLOATS = ("float64", "float32", "bfloat16", "float16")
KEPT = {"bfloat16": "uint16", "float16": "uint16"}  # how NumPy holds them here
# Just above infinity's bits, without the sign: the NaNs.
NANS = {"bfloat16": 0x7F80, "float16": 0x7C00}


def numbers(dtype: str, seed: int, count: int) -> np.ndarray:
    """Of all magnitudes; among 16 bits every pattern, also infinity, NaN and subnormals."""
    random = np.random.default_rng([seed, count])
    if dtype in KEPT:
        return random.integers(0, 1 << 16, count).astype(np.uint16)
    if dtype in FLOATS:
        exponents = random.integers(-20, 20, count)
        return (random.standard_normal(count) * 10.0**exponents).astype(dtype)
    return random.integers(0, 100, count).astype(dtype)


def assert_same_bits(dtype: str, found: np.ndarray, expected: np.ndarray) -> None:
    """But for a NaN's payload, which processors choose."""
    if dtype in NANS:
        nans = [(array & 0x7FFF) > NANS[dtype] for array in (found, expected)]
    else:
        nans = [np.isnan(array) for array in (found, expected)]
    np.testing.assert_array_equal(*nans)
    kind = f"u{found.itemsize}"
    np.testing.assert_array_equal(found.view(kind)[~nans[0]], expected.view(kind)[~nans[0]])


def on_cpu(dtype: str, op: str, parts: list[np.ndarray], scale: float = 1.0) -> np.ndarray:
    """The collective's result, in the order of ranks."""

    def body(comm):
        own = parts[comm.rank].copy()
        at = own.ctypes.data
        comm.core.all_reduce(at, at, own.size, dtype, op, "naive", 0, scale)
        return own

    with np.errstate(all="ignore"):
        return results(run_threads(len(parts), body))[0]


@pytest.mark.parametrize("dtype", arrays.BYTES)
@pytest.mark.parametrize("op", ["sum", "max", "min"])
@pytest.mark.parametrize(("parts", "count"), [(1, 5), (2, 3001), (5, 1024), (3, 0)])
def test_parts_are_combined_as_on_the_cpu(device, dtype, op, parts, count):
    given = [numbers(dtype, part, count) for part in range(parts)]
    there = [device.upload(array.copy()) for array in given]
    # One guard element behind the result must keep its value.
    out = device.upload(np.full(count + 1, 7, given[0].dtype))
    pointers = [device.pointer(array) for array in there]
    device.kernels.combine(device.place, dtype, op, pointers, device.pointer(out), count)
    found = device.download(out)
    assert found[count] == 7
    assert_same_bits(dtype, found[:count], on_cpu(dtype, op, given))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_result_may_be_one_of_the_parts(device, dtype):
    given = [numbers(dtype, part, 999) for part in range(2)]
    there = [device.upload(array.copy()) for array in given]
    pointers = [device.pointer(array) for array in there]
    device.kernels.combine(device.place, dtype, "sum", pointers, pointers[1], 999)
    assert_same_bits(dtype, device.download(there[1]), on_cpu(dtype, "sum", given))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [0, 1, 3001])
def test_means_and_products_round_as_on_the_cpu(device, dtype, count):
    given = [numbers(dtype, part, count) for part in range(3)]
    there = [device.upload(array.copy()) for array in given]
    pointers = [device.pointer(array) for array in there]
    device.kernels.combine(device.place, dtype, "sum", pointers, pointers[0], count)
    device.kernels.divide(device.place, dtype, pointers[0], count, 3)
    assert_same_bits(dtype, device.download(there[0]), on_cpu(dtype, "mean", given))
    device.kernels.multiply(device.place, dtype, pointers[0], pointers[1], count, 0.3)
    expected = on_cpu(dtype, "sum", [given[1]], scale=0.3)
    assert_same_bits(dtype, device.download(there[0]), expected)


def test_what_a_kernel_has_not_is_refused(device):
    with pytest.raises(UsageError, match="257 parts of a sum on a GPU, the most is 256"):
        device.kernels.combine(device.place, "float32", "sum", [0] * 257, 0, 1)
    with pytest.raises(UsageError, match="sum of int32 is not defined"):
        device.kernels.divide(device.place, "int32", 0, 1, 2)
