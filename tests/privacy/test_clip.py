from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dpcomm import _core
from dpcomm.privacy.clip import Clipped, clip_sum
from dpcomm.privacy.clipping import ClipRule

torch = pytest.importorskip("torch")

ISAS = _core.noise_isas()


def raw(
    grads: np.ndarray,
    clip_norm: float,
    threads: int = 1,
    isa: str = "auto",
    stability: float = 0.0,
) -> tuple:
    """The binding on a float32 matrix: total, norms and the count of non-finite rows."""
    rows, columns = grads.shape
    total, norms = np.empty(columns, np.float32), np.empty(rows)
    blocks = [(grads.ctypes.data, columns, columns)]
    out = total.ctypes.data, norms.ctypes.data
    nonfinite = _core.clip_sum(
        blocks,
        rows,
        "float32",
        _core.ClipRule([clip_norm], stability),
        *out,
        threads=threads,
        isa=isa,
    )
    return total, norms, nonfinite


def reference(grads: np.ndarray, clip_norm: float) -> tuple[np.ndarray, np.ndarray]:
    g = grads.astype(np.float64)
    norms = np.linalg.norm(g, axis=1)
    factors = np.minimum(1, clip_norm / np.maximum(norms, 1e-300))
    return factors @ g, norms


def exact_norm(x: np.ndarray) -> float:
    """Correct to a unit in the last place of double: the squares are exact, and so is fsum."""
    return math.sqrt(math.fsum((x.ravel().astype(np.float64) ** 2).tolist()))


def gradients(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.normal(size=(rows, 1)))  # some above the bound, some below
    return (rng.normal(size=(rows, columns)) * scales / max(columns, 1) ** 0.5).astype(np.float32)


@pytest.mark.parametrize("columns", [1, 2, 31, 33, 511, 4737, 70_001])
@pytest.mark.parametrize("rows", [1, 3, 64, 65])
def test_total_and_norms_equal_double_precision(rows: int, columns: int) -> None:
    grads = gradients(rows, columns)
    clipped = clip_sum(grads, 1.0)
    total, norms = reference(grads, 1.0)
    assert np.abs(clipped.total - total).max() <= 1e-6 * np.abs(total).max() * math.sqrt(rows)
    assert clipped.norms == pytest.approx(norms, rel=1e-7)
    assert (clipped.nonfinite, clipped.sensitivity) == (0, 1.0)


@pytest.mark.parametrize("shape", [(0, 10), (5, 0), (0, 0)])
def test_empty_gives_zeros(shape: tuple[int, int]) -> None:
    clipped = clip_sum(np.ones(shape, np.float32), 1.0)
    assert clipped.total.shape == (shape[1],)
    assert clipped.norms.shape == (shape[0],)
    assert not clipped.total.any()
    assert not clipped.norms.any()
    assert clipped.nonfinite == 0


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", [0, 40, 5000])
def test_nonfinite_row_adds_nothing_and_is_counted(poison: float, column: int) -> None:
    grads = gradients(9, 5001)
    clean = np.delete(grads, [2, 7], axis=0)
    grads[2, column] = grads[7, 0] = poison
    clipped = clip_sum(grads, 0.5)
    assert clipped.nonfinite == 2
    assert (clipped.total == clip_sum(clean, 0.5).total).all()
    assert np.isfinite(clipped.norms).sum() == 7


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (7, 1030), (300, 1030), (70, 4737), (3, 140_000)]
)
def test_bits_depend_on_neither_isa_nor_threads(
    isa: str, threads: int, rows: int, columns: int
) -> None:
    grads = gradients(rows, columns)
    total, norms, _ = raw(grads, 1.0, isa="scalar")
    other_total, other_norms, _ = raw(grads, 1.0, threads, isa)
    assert other_total.tobytes() == total.tobytes()
    assert other_norms.tobytes() == norms.tobytes()


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
rows_of_floats = hnp.arrays(np.float32, st.integers(1, 70), elements=floats)
clip_norms = st.floats(1e-45, 1e6)


@settings(deadline=None, max_examples=500)
@given(row=rows_of_floats, clip_norm=clip_norms)
def test_norm_of_what_one_sample_adds_never_exceeds_the_bound(
    row: np.ndarray, clip_norm: float
) -> None:
    clipped = clip_sum(row[None], clip_norm)
    assert exact_norm(clipped.total) <= clip_norm
    assert clipped.norms[0] == pytest.approx(exact_norm(row), rel=2**-22)
    if exact_norm(row) < clip_norm * (1 - 1e-12):
        assert (clipped.total == row).all()


@settings(deadline=None, max_examples=200)
@given(seed=st.integers(0, 2**32), columns=st.integers(1, 3000), dtype=st.sampled_from(
    ["float32", "bfloat16", "float16"]))  # fmt: skip
def test_bound_holds_for_every_dtype_and_is_tight(seed: int, columns: int, dtype: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    row = torch.randn(1, columns, generator=generator).to(getattr(torch, dtype))
    norm = exact_norm(row.float().numpy())
    clip_norm = 0.75 * norm
    if norm == 0:
        return
    clipped = exact_norm(clip_sum(row, clip_norm).total.numpy())
    assert clip_norm * (1 - 2**-21) <= clipped <= clip_norm


@pytest.mark.parametrize("scale", [1e30, 3e38, 1e-30, 1e-38, 1e-44])
def test_squares_that_leave_the_range_of_float(scale: float) -> None:
    grads = np.full((2, 100), scale, np.float32)
    clipped = clip_sum(grads, 1.0)
    assert clipped.nonfinite == 0
    assert clipped.norms == pytest.approx(exact_norm(grads[0]), rel=1e-14)
    expected = 2 * grads[0].astype(np.float64) * min(1, 1 / exact_norm(grads[0]))
    assert clipped.total == pytest.approx(expected, rel=1e-5)  # the factor may be subnormal
    assert exact_norm(clip_sum(grads[:1], 1.0).total) <= 1.0


def test_norm_of_exactly_the_bound_loses_no_more_than_the_proof_needs() -> None:
    grads = np.array([[3, 4]], np.float32)
    total = clip_sum(grads, 5.0).total.astype(np.float64)
    assert exact_norm(total) <= 5.0
    assert (total >= grads[0] * (1 - 2**-22)).all()
    assert (clip_sum(grads, 5.000001).total == grads[0]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_exactly(dtype: str) -> None:
    every = np.arange(2**16, dtype=np.uint16).reshape(64, 1024)
    halves = torch.from_numpy(every.view(np.int16)).view(getattr(torch, dtype))
    grads = halves[halves.isfinite().all(dim=1)]
    assert len(grads) > 40
    wide = grads.float()
    for bound in (1e4, 1e300):
        assert (clip_sum(grads, bound).total == clip_sum(wide, bound).total).all()
    assert clip_sum(halves, 1.0).nonfinite == 64 - len(grads)


def test_rows_may_have_gaps_and_lie_unaligned() -> None:
    base = gradients(20, 100)
    view = base[::2, 3:90]
    assert (clip_sum(view, 0.7).total == clip_sum(view.copy(), 0.7).total).all()
    tensor = torch.from_numpy(base)[::2, 3:90]
    clipped = clip_sum(tensor, 0.7)
    assert isinstance(clipped.total, torch.Tensor)
    assert isinstance(clipped.norms, torch.Tensor)
    assert (clipped.total.numpy() == clip_sum(view, 0.7).total).all()


def test_list_of_parameters_is_clipped_as_one() -> None:
    grads = gradients(30, 4737)
    parts = [grads[:, :2560].reshape(30, 64, 40), grads[:, 2560:2561], grads[:, 2561:]]
    parts = [np.ascontiguousarray(part) for part in parts]
    clipped, whole = clip_sum(parts, 1.0), clip_sum(grads, 1.0)
    assert (clipped.total == whole.total).mean() > 0.99  # norms are summed in another order
    assert clipped.total == pytest.approx(whole.total, rel=1e-6, abs=1e-7)
    assert clipped.norms == pytest.approx(whole.norms, rel=1e-7)


@settings(deadline=None, max_examples=200)
@given(row=rows_of_floats, clip_norm=clip_norms, stability=st.floats(1e-30, 1.0))
def test_automatic_clipping_keeps_the_bound(
    row: np.ndarray, clip_norm: float, stability: float
) -> None:
    clipped = clip_sum(row[None], ClipRule((clip_norm,), stability))
    assert exact_norm(clipped.total) <= clip_norm


@pytest.mark.parametrize("isa", ISAS)
def test_automatic_clipping_gives_each_sample_about_the_same_length(isa: str) -> None:
    grads = gradients(40, 1030)
    _, norms = reference(grads, 1.0)
    expected = (0.5 / (norms + 0.01)) @ grads.astype(np.float64)
    total, _, _ = raw(grads, 0.5, isa=isa, stability=0.01)
    assert total == pytest.approx(expected, abs=1e-6)
    assert (clip_sum(grads, ClipRule((0.5,), 0.01)).total == total).all()


def test_a_norm_for_each_array_clips_each_array_by_its_own_norm() -> None:
    parts = [gradients(30, 2560, seed=1), gradients(30, 64, seed=2), gradients(30, 1, seed=3)]
    bounds = (0.5, 0.25, 2.0)
    clipped = clip_sum(parts, ClipRule(bounds))
    alone = [clip_sum(part, bound) for part, bound in zip(parts, bounds, strict=True)]
    assert (clipped.total == np.concatenate([one.total for one in alone])).all()
    assert (clipped.norms == np.stack([one.norms for one in alone], 1)).all()
    assert clipped.sensitivity == pytest.approx(math.sqrt(0.25 + 0.0625 + 4))


def test_a_sample_with_one_nonfinite_array_adds_nothing_to_any() -> None:
    parts = [torch.from_numpy(gradients(5, 10, seed)) for seed in range(3)]
    rule = ClipRule((1.0, 1.0, 1.0))
    clean = clip_sum([part[[0, 1, 3]] for part in parts], rule)
    parts[0][2, 3] = math.nan
    parts[1][2, 0] = parts[2][4, 9] = math.inf
    clipped = clip_sum(parts, rule)
    assert clipped.nonfinite == 2
    assert torch.equal(clipped.total, clean.total)


def test_as_many_norms_as_there_are_not_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="2 clip norms for 1 arrays"):
        clip_sum([gradients(2, 3)], ClipRule((1.0, 2.0)))


@pytest.mark.parametrize(
    ("grads", "clip_norm", "reason"),
    [
        (np.zeros((2, 3)), 1.0, "dtype float64"),
        (np.zeros((2, 3), np.float32), 0.0, "clip_norm=0"),
        (np.zeros((2, 3), np.float32), math.inf, "clip_norm=inf"),
        (np.zeros((2, 3), np.float32), math.nan, "clip_norm=nan"),
        (np.zeros((2, 6), np.float32)[:, ::2], 1.0, "without gaps"),
        (np.zeros((2, 3), np.float32)[::-1], 1.0, "row stride"),
        (np.float32(1), 1.0, "not an array|sample dimension"),
        ([], 1.0, "empty list"),
        ([np.zeros((2, 3), np.float32), np.zeros((3, 3), np.float32)], 1.0, "same for each"),
    ],
)
def test_bad_arguments_are_refused(grads: Any, clip_norm: float, reason: str) -> None:
    with pytest.raises((ValueError, TypeError), match=reason):
        clip_sum(grads, clip_norm)


def test_result_says_its_sensitivity() -> None:
    assert isinstance(clip_sum(gradients(2, 3), 0.25), Clipped)
    assert clip_sum(gradients(2, 3), 0.25).sensitivity == 0.25
