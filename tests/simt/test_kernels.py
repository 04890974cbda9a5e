"""The CUDA kernels against the CPU's: noise to the bit, clipping within its bound and rounding."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from conftest import Simt, Sized

from dpcomm import UsageError, _core

KEY = bytes(range(32))
GENERATORS = ["chacha20", "philox"]


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize(
    ("count", "offset"),
    [(0, 3), (1, 0), (1, 511), (31, 1), (512, 0), (513, 511), (5000, 77), (100, 2**40 + 5)],
)
def test_noise_has_the_bits_of_the_cpu(device, generator, count, offset):
    # One guard element at each side must keep its value.
    start = np.linspace(-1, 1, count + 2, dtype=np.float32)
    expected = start.copy()
    inside = expected[1:-1]
    noise = _core.NoiseSpec(KEY, 9, 0.7, generator)
    _core.add_noise(inside.ctypes.data, count, offset, noise, 0.125)
    data = device.upload(start.copy())
    device.kernels.add_noise(device.place, device.pointer(data) + 4, count, offset, noise, 0.125)
    np.testing.assert_array_equal(
        device.download(data).view(np.uint32), expected.view(np.uint32), strict=True
    )


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_counter_on_the_device_is_added_to_the_step(device, generator):
    """As a CUDA graph needs it, which repeats all arguments."""
    expected = np.zeros(1000, np.float32)
    noise = _core.NoiseSpec(KEY, 2**33 + 9, 0.7, generator)
    _core.add_noise(expected.ctypes.data, 1000, 5, noise)
    data = device.upload(np.zeros(1000, np.float32))
    counter = device.pointer(at := device.upload(np.array([2**33], np.uint64)))
    noise = _core.NoiseSpec(KEY, 9, 0.7, generator)
    device.kernels.add_noise(device.place, device.pointer(data), 1000, 5, noise, counter=counter)
    np.testing.assert_array_equal(device.download(data), expected, strict=True)
    assert device.download(at)[0] == 2**33


def test_an_update_takes_what_changes_from_the_device(device):
    here = [np.full(1000, value, np.float32) for value in (0.5, 2, 0.1, 0.2)]
    there = [device.upload(array.copy()) for array in here]
    lr, beta1, beta2, count = 0.01, 0.9, 0.999, 7
    gradient, parameters, *states = (array.ctypes.data for array in here)
    noise, rule = _core.NoiseSpec(KEY, 12, 0.7), _core.Adam(lr, beta1, beta2, count=count)
    _core.update(gradient, parameters, states, 1000, 5, noise, 0.125, rule)
    corrections = np.array([lr / (1 - beta1**count), (1 - beta2**count) ** -0.5], np.float32)
    kept = [device.upload(np.array([3], np.uint64)), device.upload(corrections)]
    gradient, parameters, *states = map(device.pointer, there)
    noise, rule = _core.NoiseSpec(KEY, 9, 0.7), _core.Adam(lr, beta1, beta2, count=1)
    device.kernels.update(
        device.place, gradient, parameters, states, 1000, 5, noise, 0.125, rule,
        *map(device.pointer, kept),
    )  # fmt: skip
    for expected, data in zip(here, there, strict=True):
        np.testing.assert_array_equal(device.download(data), expected, strict=True)


OPTIMIZERS = {
    "sgd": (0, _core.Sgd(0.1, weight_decay=0.01)),
    "momentum": (1, _core.Sgd(0.1, 0.9, nesterov=True)),
    "adam": (2, _core.Adam(0.01, weight_decay=0.1, count=3)),
}


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("count", "offset"), [(0, 3), (1, 511), (513, 511), (5000, 77)])
def test_update_has_the_bits_of_the_cpu(device, generator, optimizer, count, offset):
    kept, rule = OPTIMIZERS[optimizer]
    # Gradient, parameters and states, with one guard element at each side.
    random = np.random.default_rng(1)
    here = [abs(random.normal(size=count + 2)).astype(np.float32) for _ in range(2 + kept)]
    there = [device.upload(array.copy()) for array in here]
    noise = (count, offset, _core.NoiseSpec(KEY, 9, 0.7, generator), 0.125, rule)
    gradient, parameters, *states = (array.ctypes.data + 4 for array in here)
    _core.update(gradient, parameters, states, *noise)
    gradient, parameters, *states = (device.pointer(array) + 4 for array in there)
    device.kernels.update(device.place, gradient, parameters, states, *noise)
    for expected, data in zip(here, there, strict=True):
        np.testing.assert_array_equal(
            device.download(data).view(np.uint32), expected.view(np.uint32), strict=True
        )


def test_a_negative_std_is_refused(device):
    with pytest.raises(UsageError, match="standard deviation is -1"):
        device.kernels.add_noise(device.place, 16, 1, 0, _core.NoiseSpec(KEY, 0, -1.0))


# The devices make one row fit into one block, several blocks, all blocks, and nowhere.
SMALL = Sized(multiprocessors=3, shared_bytes=16 << 10)
LARGE = Sized(multiprocessors=5, shared_bytes=96 << 10)


def bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


NARROW = {
    "float32": (lambda v: v.astype(np.float32), lambda n: n.astype(np.float64)),
    "float16": (lambda v: v.astype(np.float16), lambda n: n.astype(np.float64)),
    "bfloat16": (bfloat16, lambda n: (n.astype(np.uint32) << 16).view(np.float32).astype(float)),
}


def clip_on(device, grads, dtype, clip_norm, stability=0.0, sample_norms=None):
    """`grads`: [rows, columns] arrays side by side; padded and misaligned in memory."""
    rows = len(grads[0])
    stored, blocks = [], []
    for grad in grads:
        columns = grad.shape[1]
        padded = np.zeros((rows, columns + 3), grad.dtype)
        padded[:, 1 : columns + 1] = grad
        stored.append(device.upload(padded))
        address = device.pointer(stored[-1]) + grad.dtype.itemsize
        blocks.append((address, columns, columns + 3))
    columns = sum(grad.shape[1] for grad in grads)
    plan = device.kernels.clip_plan(0, blocks, rows, dtype)
    total = device.upload(np.full(columns, np.nan, np.float32))
    norms = device.upload(np.full(rows, np.nan))
    nonfinite = device.upload(np.full(1, -1))
    workspace = device.upload(np.full(plan.workspace_bytes, 255, np.uint8))
    samples = None if sample_norms is None else device.upload(sample_norms)
    device.kernels.clip_sum(
        device.place, plan, blocks, rows, dtype, clip_norm, stability,
        *(device.pointer(array) for array in (total, norms, nonfinite, workspace)),
        device.pointer(samples) if samples is not None else 0,
    )  # fmt: skip
    return plan, device.download(total), device.download(norms), int(device.download(nonfinite)[0])


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (1, [1]),
        (3, [32]),
        (11, [70, 1, 513]),
        (5, [2500]),
        (6, [9, 4000, 30, 7]),
        (4, [33000]),
        (3, [70_003]),
        (2, [20000, 13000]),
    ],
)
def test_clip_sum_is_the_cpus(device, size, dtype, rows, columns):
    size.apply(device)
    narrow, wide = NARROW[dtype]
    random = np.random.default_rng(rows + len(columns))
    grads = [narrow(random.normal(size=(rows, c))) for c in columns]
    flat = np.concatenate([wide(grad) for grad in grads], axis=1)
    exact = np.sqrt((flat**2).sum(axis=1))
    clip_norm = float(np.median(exact))
    _, total, norms, nonfinite = clip_on(device, grads, dtype, clip_norm)
    np.testing.assert_allclose(norms, exact, rtol=1e-13)
    factors = np.minimum(1, clip_norm / exact)
    np.testing.assert_allclose(total, factors @ flat, atol=2e-6 * rows * clip_norm, rtol=2e-6)
    assert nonfinite == 0
    _, total, _, _ = clip_on(device, grads, dtype, clip_norm, stability=0.01)
    factors = clip_norm / (exact + 0.01)
    np.testing.assert_allclose(total, factors @ flat, atol=2e-6 * rows * clip_norm, rtol=2e-6)


def test_every_division_of_the_work_is_reached(device):
    if not isinstance(device, Simt):
        pytest.skip("a GPU has the size it has")
    SMALL.apply(device)

    def division(*columns):
        blocks = [(16, count, count) for count in columns]
        plan = device.kernels.clip_plan(0, blocks, 8, "float32")
        return plan.members, plan.group_rows > 0

    assert division(32) == (1, True)
    assert division(1500) == (3, True)
    assert division(33000) == (3, False)
    assert division(70_656) == (3, False)
    assert division(70_657) == (0, False)
    assert division(20000, 13000) == (0, False)


@pytest.mark.parametrize("columns", [40, 1500, 33000])
def test_order_of_threads_does_not_matter(device, columns):
    if not isinstance(device, Simt):
        pytest.skip("a GPU takes its own order")
    SMALL.apply(device)
    grads = [np.random.default_rng(1).normal(size=(7, columns)).astype(np.float32)]
    forward = clip_on(device, grads, "float32", 1.0)
    device.kernels.set_reverse(True)
    reverse = clip_on(device, grads, "float32", 1.0)
    device.kernels.set_reverse(False)
    np.testing.assert_array_equal(forward[1], reverse[1])
    np.testing.assert_array_equal(forward[2], reverse[2])


@pytest.mark.parametrize("columns", [40, 1500, 33000])
@pytest.mark.parametrize("dtype", NARROW)
def test_a_row_that_is_not_finite_only_counts(device, dtype, columns):
    SMALL.apply(device)
    narrow, wide = NARROW[dtype]
    values = np.random.default_rng(2).normal(size=(6, columns))
    values[1, columns // 2] = np.nan
    values[4, 0] = -np.inf
    grads = narrow(values)
    _, total, norms, nonfinite = clip_on(device, [grads], dtype, 1e6)
    assert nonfinite == 2
    assert np.isnan(norms[1])
    assert np.isinf(norms[4])
    np.testing.assert_allclose(total, wide(grads)[[0, 2, 3, 5]].sum(axis=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("columns", [[40], [1500], [33000], [20000, 13000]])
def test_a_sample_that_is_not_finite_in_another_layer_adds_nothing(device, columns):
    SMALL.apply(device)
    random = np.random.default_rng(4)
    grads = [random.normal(size=(6, count)).astype(np.float32) for count in columns]
    samples = np.array([1.0, np.inf, 1.0, 1.0, np.nan, 1.0])
    _, total, norms, _ = clip_on(device, grads, "float32", 1e6, sample_norms=samples)
    finite = np.concatenate(grads, axis=1)[[0, 2, 3, 5]]
    np.testing.assert_allclose(total, finite.sum(axis=0), rtol=1e-5, atol=1e-5)
    assert np.isfinite(norms).all()


@pytest.mark.parametrize("columns", [3, 1500])
def test_no_row_adds_more_than_the_clip_norm(device, columns):
    SMALL.apply(device)
    random = np.random.default_rng(3)
    for scale in (1.0, 1e-30, 1e18):
        row = (random.normal(size=(1, columns)) * scale).astype(np.float32)
        norm = np.sqrt((row.astype(np.float64) ** 2).sum())
        for clip_norm in (norm * 0.3, float(np.float32(norm)), norm):
            _, total, _, _ = clip_on(device, [row], "float32", clip_norm)
            added = sum(Fraction(float(v)) ** 2 for v in total)
            assert added <= Fraction(clip_norm) ** 2
            assert added >= Fraction(min(norm, clip_norm) * (1 - 1e-6)) ** 2


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (3, 0), (0, 0)])
def test_an_empty_batch_gives_zeros(device, rows, columns):
    SMALL.apply(device)
    _, total, norms, nonfinite = clip_on(
        device, [np.zeros((rows, columns), np.float32)], "float32", 1.0
    )
    assert not total.any()
    assert not norms.any()
    assert nonfinite == 0
