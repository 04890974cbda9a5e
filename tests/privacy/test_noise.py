from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpcomm import _core
from dpcomm.privacy.noise import add_noise_, new_key

KEY = bytes(range(1, 33))
PINNED = {
    "chacha20": [3201188609, 1067476472, 3216579596],
    "philox": [1070250395, 1057684763, 1066864707],
}
GENERATORS = ("chacha20", "philox")
ISAS = _core.noise_isas()

generators = pytest.mark.parametrize("generator", GENERATORS)


def noise(
    count: int, offset: int = 0, generator: str = "chacha20", step: int = 3, key: bytes = KEY,
    threads: int = 1, isa: str = "auto",
) -> np.ndarray:  # fmt: skip
    out = np.zeros(count, np.float32)
    spec = _core.NoiseSpec(key, step, 1.0, generator)
    _core.add_noise(out.ctypes.data, count, offset, spec, threads=threads, isa=isa)
    return out


@generators
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("offset", [0, 5, 511, 2**36 - 700, 2**64 - 1501])
def test_every_isa_gives_the_reference_bits(generator: str, isa: str, offset: int) -> None:
    reference = noise(1500, offset, generator, isa="scalar")
    assert noise(1500, offset, generator, isa=isa).tobytes() == reference.tobytes()


@generators
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_any_split_gives_the_same_bits(generator: str, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 3000))
    offset = data.draw(st.integers(0, 10**6))
    cuts = data.draw(st.lists(st.integers(0, count), max_size=4))
    edges = [0, *sorted(cuts), count]
    parts = [noise(end - begin, offset + begin, generator)
             for begin, end in itertools.pairwise(edges)]  # fmt: skip
    assert np.concatenate(parts).tobytes() == noise(count, offset, generator).tobytes()


@generators
@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 511, 513, 100_003])
def test_threads_do_not_change_the_bits(generator: str, threads: int, count: int) -> None:
    assert (noise(count, 77, generator, threads=threads) == noise(count, 77, generator)).all()


def test_bits_are_pinned() -> None:
    """A change of these is a change of the noise that all ranks and devices must make together."""
    drawn = {g: noise(3, 1000, g, step=2**40).view(np.uint32).tolist() for g in GENERATORS}
    assert drawn == PINNED


@generators
def test_moments_up_to_the_sixth(generator: str) -> None:
    n = 10_000_000
    x = noise(n, generator=generator).astype(np.float64)
    for order, expected, variance in [
        (1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (5, 0, 945), (6, 15, 10170)
    ]:  # fmt: skip
        assert abs((x**order).mean() - expected) < 5 * math.sqrt(variance / n), order


def expected_beyond(sigma: float, n: int) -> float:
    return n * math.erfc(sigma / math.sqrt(2))


@generators
def test_tails_have_their_expected_counts(generator: str) -> None:
    n = 10_000_000
    x = np.abs(noise(n, generator=generator, step=5))
    for sigma in (3, 4, 4.5, 5):
        expected = expected_beyond(sigma, n)
        assert abs((x > sigma).sum() - expected) < 5 * math.sqrt(expected) + 1, sigma


@pytest.mark.slow
@generators
def test_tails_to_six_sigma_over_a_billion(generator: str) -> None:
    n, chunk = 10**9, 10**7
    sigmas = (4, 5, 5.5, 6)
    counts = np.zeros(len(sigmas))
    for offset in range(0, n, chunk):
        x = np.abs(noise(chunk, offset, generator, step=9, threads=2))
        large = x[x > sigmas[0]]
        counts += [(large > sigma).sum() for sigma in sigmas]
    for sigma, count in zip(sigmas, counts, strict=True):
        expected = expected_beyond(sigma, n)
        assert abs(count - expected) < 5 * math.sqrt(expected) + 1, sigma


@generators
def test_kolmogorov_smirnov_takes_the_noise_and_rejects_two_percent_more(generator: str) -> None:
    x = noise(1_000_000, generator=generator, step=6)
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert stats.kstest(x * 1.02, "norm").pvalue < 1e-6


@generators
def test_neighbours_steps_and_keys_are_independent(generator: str) -> None:
    n = 2_000_000
    x = noise(n, generator=generator)
    # 1 is a lane, 32 the other half of a Gaussian pair, 64 the next pair, 512 the next blocks.
    others = {f"lag {lag}": (x[:-lag], x[lag:]) for lag in (1, 2, 16, 32, 64, 128, 512)}
    others["next step"] = (x, noise(n, generator=generator, step=4))
    others["distant step"] = (x, noise(n, generator=generator, step=3 + 2**32))
    others["key with one bit changed"] = (x, noise(n, generator=generator, key=b"\0" + KEY[1:]))
    others["generator"] = (x, noise(n, generator=GENERATORS[generator == "chacha20"]))
    for name, (a, b) in others.items():
        for transform in (lambda v: v, np.square, np.sign):
            correlation = np.corrcoef(transform(a), transform(b))[0, 1]
            assert abs(correlation) < 5 / math.sqrt(n), name


def test_data_gets_std_times_noise_then_scale() -> None:
    data = np.linspace(-3, 3, 1003, dtype=np.float32)
    z = noise(1003, 11).astype(np.float64)
    out = data.copy()
    assert add_noise_(out, 2.5, KEY, 3, offset=11, scale=0.125) is out
    exact = (data + np.float64(2.5) * z) * 0.125
    assert np.abs(out - exact).max() <= 2**-23 * np.abs(exact).max()


def test_std_is_rounded_up() -> None:
    x = np.zeros(1000, np.float32)
    add_noise_(x, 0.1 - 1e-12, KEY, 3)  # below the float next to 0.1
    assert (x == np.float32(0.1) * noise(1000)).all()
    assert (
        float(np.float32(0.1)) > 0.1 - 1e-12 > float(np.nextafter(np.float32(0.1), np.float32(0)))
    )


def test_no_noise_leaves_data_as_it_is() -> None:
    data = np.array([1.5, -2.0, 1e-40], np.float32)
    assert (add_noise_(data.copy(), 0.0, KEY, 1) == data).all()


def test_torch_tensor_of_any_shape() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(5, 7)
    assert add_noise_(tensor, 1.0, KEY, 3) is tensor
    assert (tensor.numpy().ravel() == noise(35)).all()


def test_new_keys_differ() -> None:
    assert len(new_key()) == 32
    assert new_key() != new_key()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"std": -1.0}, "standard deviation is -1"),
        ({"std": math.nan}, "standard deviation is nan"),
        ({"std": 1e39}, "standard deviation is"),
        ({"key": b"short"}, "key of 5 bytes"),
        ({"generator": "mersenne"}, "'mersenne' is unknown"),
        ({"offset": 2**64 - 1}, r"pass 2\^64"),
        ({"buffer": np.zeros(4)}, "dtype float64"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], reason: str) -> None:
    good: dict[str, object] = {"buffer": np.zeros(4, np.float32), "std": 1.0, "key": KEY, "step": 0}
    with pytest.raises(ValueError, match=reason):
        add_noise_(**(good | arguments))  # type: ignore[arg-type]
