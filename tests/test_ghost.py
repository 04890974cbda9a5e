"""clip_linear against gradients formed one sample at a time in float64, and its bound."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

import dpcomm  # noqa: E402
from dpcomm import _core, ghost  # noqa: E402
from dpcomm._core import UsageError  # noqa: E402
from dpcomm.privacy.clipping import as_rule  # noqa: E402

# positions, inputs, outputs: one position; few, where Gram matrices are cheaper; many, where not
SHAPES = [(1, 5, 3), (4, 40, 30), (50, 6, 4)]


def layer(positions, inputs, outputs, samples=9, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(samples, positions, inputs, generator=generator)
    g = torch.randn(samples, positions, outputs, generator=generator)
    g = g * torch.logspace(-2, 2, samples).view(-1, 1, 1)
    return (a[:, 0], g[:, 0]) if positions == 1 else (a.to(dtype), g.to(dtype))


def formed(a, g, bias):
    """[B, o * d (+ o)], in float64."""
    a, g = (x.double().reshape(len(x), -1, x.shape[-1]) for x in (a, g))
    weight = torch.einsum("bto,btd->bod", g, a).flatten(1)
    return torch.cat([weight, g.sum(1)], 1) if bias else weight


def flat(clipped):
    return torch.cat([x.flatten() for sums in clipped.sums for x in sums]).double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_layer_equals_the_sum_over_formed_gradients(shape, bias):
    a, g = layer(*shape)
    rows = formed(a, g, bias)
    norms = rows.norm(dim=1)
    clip_norm = float(norms.median())
    clipped = dpcomm.clip_linear(a, g, clip_norm, bias=bias)
    torch.testing.assert_close(clipped.norms, norms, rtol=1e-7, atol=0)
    expected = (clip_norm / norms).clamp(max=1) @ rows
    # The factor leaves room for roundings that several positions add up.
    assert (flat(clipped) - expected).norm() < 1e-6 * shape[0] ** 0.5 * expected.norm()
    assert clipped.sums[0][0].shape == (shape[2], shape[1])
    assert clipped.sensitivity == clip_norm


def test_several_layers_share_one_norm():
    layers = [layer(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    biases = [True, False, True]
    each = zip(layers, biases, strict=True)
    rows = torch.cat([formed(a, g, bias) for (a, g), bias in each], 1)
    norms = rows.norm(dim=1)
    clip_norm = float(norms.median())
    inputs, gradients = zip(*layers, strict=True)
    clipped = dpcomm.clip_linear(inputs, gradients, clip_norm, bias=biases)
    expected = (clip_norm / norms).clamp(max=1) @ rows
    torch.testing.assert_close(clipped.norms, norms, rtol=1e-7, atol=0)
    assert (flat(clipped) - expected).norm() < 1e-6 * expected.norm()


def test_it_equals_clip_sum_over_formed_gradients():
    a, g = layer(4, 40, 30)
    rows = formed(a, g, True).float()
    clipped = dpcomm.clip_sum(rows, 3.0)
    ours = flat(dpcomm.clip_linear(a, g, 3.0))
    assert (ours - clipped.total.double()).norm() < 2e-6 * ours.norm()


@pytest.mark.parametrize("positions", [1, 2, 30])
def test_no_sample_adds_more_than_the_clip_norm(positions):
    """In float64 and without tolerance, also where positions cancel almost wholly."""
    generator = torch.Generator().manual_seed(3)
    tight = 0.0
    for trial in range(300):
        inputs, outputs = (int(torch.randint(1, 40, (), generator=generator)) for _ in range(2))
        a = torch.randn(1, positions, inputs, generator=generator)
        g = torch.randn(1, positions, outputs, generator=generator)
        if trial % 3 == 1 and positions > 1:
            half = positions // 2
            a[:, half : 2 * half], g[:, half : 2 * half] = a[:, :half], -g[:, :half] * (1 + 1e-4)
        if trial % 3 == 2:
            a, g = a * 1e30, g * 1e-20
        norm = float(formed(a, g, True).norm())
        clip_norm = norm * 10 ** float(-2 * torch.rand((), generator=generator))
        added = float(flat(dpcomm.clip_linear(a, g, clip_norm)).norm())
        assert added <= clip_norm
        tight = max(tight, added / clip_norm)
    assert tight > 1 - 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_summed_in_float32(dtype):
    a, g = layer(4, 40, 30, dtype=dtype)
    clipped = dpcomm.clip_linear(a, g, 2.0)
    wide = dpcomm.clip_linear(a.float(), g.float(), 2.0)
    assert clipped.sums[0][0].dtype == torch.float32
    assert torch.equal(flat(clipped), flat(wide))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_that_is_not_finite_adds_nothing_and_is_counted(shape, value):
    a, g = layer(*shape)
    expected = flat(dpcomm.clip_linear(a[1:], g[1:], 2.0))
    a[0].view(-1)[-1] = value
    clipped = dpcomm.clip_linear(a, g, 2.0)
    assert clipped.nonfinite == 1
    torch.testing.assert_close(flat(clipped), expected, rtol=1e-6, atol=1e-6)


def test_an_empty_batch_gives_zeros():
    clipped = dpcomm.clip_linear(torch.zeros(0, 4, 5), torch.zeros(0, 4, 3), 1.0)
    assert clipped.sums[0][0].shape == (3, 5)
    assert not flat(clipped).any()
    assert (len(clipped.norms), clipped.nonfinite) == (0, 0)


@pytest.mark.parametrize("at_once", [1, 500])
def test_norms_found_in_parts_are_the_same(monkeypatch, at_once):
    a, g = layer(50, 6, 4)
    expected = dpcomm.clip_linear(a, g, 2.0)
    monkeypatch.setattr(ghost, "_AT_ONCE", at_once)
    clipped = dpcomm.clip_linear(a, g, 2.0)
    torch.testing.assert_close(clipped.norms, expected.norms, rtol=1e-12, atol=0)


def test_what_does_not_fit_is_refused():
    a, g = layer(4, 40, 30)
    with pytest.raises(ValueError, match=r"activations of shape \[9, 4, 40\] with .* \[8, 4, 30\]"):
        dpcomm.clip_linear(a, g[:8], 1.0)
    with pytest.raises(ValueError, match=r"clip_norm=0.0: give a positive"):
        dpcomm.clip_linear(a, g, 0.0)
    with pytest.raises(ValueError, match="2 activations, 1 output gradients"):
        dpcomm.clip_linear([a, a], [g], 1.0)
    with pytest.raises(ValueError, match=r"layers of \[9, 8\] samples"):
        dpcomm.clip_linear([a, a[:8]], [g, g[:8]], 1.0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 3, 70), (300, 40, 64), (700, 70, 33)])
def test_matrices_give_the_same_bits_for_any_threads_and_vectors(shape):
    """One position: the sums are native."""
    samples, inputs, outputs = shape
    a, g = layer(1, inputs, outputs, samples)
    rows = formed(a, g, True)
    norms = rows.norm(dim=1)
    clip_norm = float(norms.median())
    results = set()
    for threads in (1, 2, 3):
        for isa in ("generic", "avx2", "avx512"):
            found, total = torch.empty(samples, dtype=torch.float64), torch.empty(rows.shape[1])
            place = inputs, outputs, total.data_ptr(), total[inputs * outputs :].data_ptr()
            try:
                ours = _core.GhostSum([place], threads, isa)
            except UsageError:  # not on this processor
                continue
            use = a.data_ptr(), inputs, g.data_ptr(), outputs
            rule = as_rule(clip_norm).core
            assert ours.add([use], samples, 1.0, rule, found.data_ptr(), False) == 0
            results.add((total.numpy().tobytes(), found.numpy().tobytes()))
    assert len(results) == 1
    torch.testing.assert_close(found, norms, rtol=1e-7, atol=0)
    expected = (clip_norm / norms).clamp(max=1) @ rows
    assert (total - expected).norm() < 1e-6 * expected.norm()


def test_sums_of_no_layers_are_refused():
    with pytest.raises(UsageError, match="no layers: give at least one"):
        _core.GhostSum([], 1)
