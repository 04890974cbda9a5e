"""Clipped gradients of modules equal a plain microbatch loop; their bound holds to the last bit."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from dpcomm import UsageError  # noqa: E402
from dpcomm.hooks import SampleHooks  # noqa: E402
from dpcomm.torch import ClippedGradient, FlatParameters  # noqa: E402

CLIP = 0.85


def mlp(seed=0, sizes=(12, 16, 8, 1), activation=nn.Tanh):
    torch.manual_seed(seed)
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


class Residual(nn.Module):
    """Linear layers, one of them used twice."""

    def __init__(self):
        super().__init__()
        self.inside, self.out = nn.Linear(12, 12), nn.Linear(12, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.inside(torch.tanh(self.inside(x)))) + x)


class Peeking(nn.Module):
    """Uses a layer's weight outside of the layer, where no hook sees it."""

    def __init__(self):
        super().__init__()
        self.inside, self.out = nn.Linear(12, 12), nn.Linear(12, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.inside(x)) @ self.inside.weight)


class Tokens(nn.Module):
    """An embedding, one weight for all positions of a sequence, and padding."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 6, padding_idx=0)
        self.inside, self.norm, self.out = nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 1)

    def forward(self, x):
        words = self.table((x.abs() * 10).long() % 7)
        return self.out(self.norm(torch.tanh(self.inside(words))).mean(1))


def other_models():
    torch.manual_seed(1)
    convolution = nn.Sequential(
        nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40, 1)
    )
    image = nn.Sequential(
        nn.Unflatten(1, (2, 2, 3)),
        nn.Conv2d(2, 4, (2, 3), stride=(1, 2), padding=1, groups=2),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.Conv2d(4, 4, 2, dilation=(1, 1), bias=False),
        nn.Flatten(),
        nn.LazyLinear(1),
    )
    image(torch.zeros(1, 12))
    circular = nn.Sequential(
        nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 4, 3, padding=1, padding_mode="circular"),
        nn.Flatten(), nn.Linear(48, 1),
    )  # fmt: skip
    normalised = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1))
    part_frozen = mlp()
    part_frozen[0].weight.requires_grad_(False)
    in_place = mlp(activation=lambda: nn.ReLU(inplace=True))
    return {
        "convolution": convolution,
        "image": image,
        "tokens": Tokens(),
        "circular": circular,
        "layer norm": normalised,
        "a layer used twice": Residual(),
        "a weight used outside": Peeking(),
        "a frozen weight": part_frozen,
        "in place": in_place,
    }


def loss(outputs, targets):
    return nn.functional.binary_cross_entropy_with_logits(
        outputs.squeeze(1), targets, reduction="none"
    )


def batch(size=33, seed=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 12, generator=generator) * torch.logspace(-1, 1, size).unsqueeze(1)
    return x, (torch.rand(size, generator=generator) > 0.5).float()


def microbatches(module, x, y, clip_norm=CLIP):
    """The definition: one sample at a time, in float64. The sum, and the norms before clipping."""
    module = module.double()
    parameters = [p for p in module.parameters() if p.requires_grad]
    total, norms = 0.0, []
    for sample, target in zip(x.double(), y.double(), strict=True):
        gradients = torch.autograd.grad(loss(module(sample[None]), target[None]).sum(), parameters)
        gradient = torch.cat([g.reshape(-1) for g in gradients])
        norms.append(float(gradient.norm()))
        total = total + gradient * min(1.0, clip_norm / norms[-1])
    module.float()
    return total, torch.tensor(norms, dtype=torch.float64)


def close(actual, expected):
    return float((actual.double() - expected).norm() / expected.norm())


def prepared(module, clip_norm=CLIP):
    parameters = FlatParameters(module)
    return ClippedGradient(module, parameters, loss, clip_norm), parameters.gradient


def test_an_mlp_equals_the_microbatch_loop_with_some_samples_clipped():
    x, y = batch()
    gradient_of, gradient = prepared(mlp())
    clipped = gradient_of(x, y)
    expected, norms = microbatches(mlp(), x, y)
    assert 5 < int((norms > CLIP).sum()) < 28, "both kinds of samples are there"
    assert close(gradient, expected) < 1e-6
    assert close(clipped.norms, norms) < 1e-6
    torch.testing.assert_close(clipped.losses, loss(mlp()(x), y))
    assert gradient_of._layers, "nothing was materialised"


FORMED = {"circular", "a weight used outside", "a frozen weight", "in place"}


@pytest.mark.parametrize("name", other_models())
def test_other_modules_equal_the_microbatch_loop(name, caplog):
    x, y = batch()
    module = other_models()[name]
    gradient_of, gradient = prepared(module)
    with caplog.at_level("INFO", "dpcomm"):
        clipped = gradient_of(x, y)
    expected, norms = microbatches(other_models()[name], x, y)
    assert close(gradient, expected) < 2e-6
    assert close(clipped.norms, norms) < 2e-6
    assert ("torch.func" in caplog.text) == (name in FORMED), "the slower way is said aloud"


@pytest.mark.parametrize("name", set(other_models()) - {"a weight used outside"})
def test_hooks_equal_the_microbatch_loop(name):
    x, y = batch()
    module = other_models()[name]
    parameters = FlatParameters(module)
    watch = SampleHooks(module, parameters, CLIP, "sum")
    loss(module(x), y).sum().backward()
    clipped = watch.add_up()
    expected, norms = microbatches(other_models()[name], x, y)
    assert close(parameters.gradient, expected) < 2e-6
    assert close(clipped.norms, norms) < 2e-6


def test_materialising_in_parts_changes_nothing_but_rounding(monkeypatch):
    x, y = batch()
    gradient_of, gradient = prepared(Peeking())
    torch.manual_seed(0)
    gradient_of(x, y)
    whole = gradient.clone()
    monkeypatch.setattr("dpcomm.torch._MATERIALISED", 5 * len(gradient))
    clipped = gradient_of(x, y)
    assert len(clipped.norms) == len(x)
    assert close(gradient, whole.double()) < 1e-6


@pytest.mark.parametrize("model", [mlp, Residual, Peeking])
def test_no_sample_adds_more_than_the_clip_norm(model):
    """To the last bit: the norm is taken in float64, and has no tolerance."""
    gradient_of, gradient = prepared(model())
    rng = np.random.default_rng(0)
    largest = 0.0
    for _ in range(300):
        x = torch.from_numpy(rng.normal(size=(1, 12)) * 10 ** rng.uniform(0, 3)).float()
        clipped = gradient_of(x, torch.tensor([float(rng.integers(2))]))
        norm = float(gradient.double().norm())
        assert norm <= CLIP
        if clipped.norms[0] > CLIP:
            assert norm > CLIP * (1 - 1e-6), "and hardly less"
        largest = max(largest, norm)
    assert largest > CLIP * (1 - 1e-6)


@pytest.mark.parametrize("model", [mlp, Residual, Peeking])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_sample_that_is_not_finite_changes_nothing_but_its_counter(model, value):
    torch.manual_seed(0)
    gradient_of, gradient = prepared(model())
    x, y = batch(8)
    kept = [0, 1, 2, 4, 5, 6, 7]
    gradient_of(x[kept], y[kept])
    expected = gradient.clone()
    x[3, 5] = value
    clipped = gradient_of(x, y)
    assert clipped.nonfinite == 1
    assert gradient.isfinite().all()
    assert close(gradient, expected.double()) < 1e-6
    x[:] = value
    assert gradient_of(x, y).nonfinite == 8
    assert not gradient.any()


@pytest.mark.parametrize("hooks", [False, True])
def test_the_bound_holds_where_scaled_gradients_are_subnormal(hooks):
    """Products of so few bits, times so large an input, err by more than is allowed for."""
    rng = np.random.default_rng(0)
    for _ in range(400):
        inputs = torch.tensor([[float(10 ** rng.uniform(36, 38.4))]])
        model, targets = nn.Linear(1, int(rng.integers(3, 200))), torch.tensor([1])
        clip_norm = float(10 ** rng.uniform(-3, 0))
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        parameters = FlatParameters(model)
        if hooks:
            watch = SampleHooks(model, parameters, clip_norm, "sum")
            nn.functional.cross_entropy(model(inputs), targets, reduction="sum").backward()
            watch.add_up(fresh=True)
        else:
            loss = partial(nn.functional.cross_entropy, reduction="none")
            ClippedGradient(model, parameters, loss, clip_norm)(inputs, targets)
        assert parameters.gradient.double().norm() <= clip_norm


def test_an_empty_batch_gives_zeros():
    gradient_of, gradient = prepared(mlp())
    gradient.fill_(3.0)
    clipped = gradient_of(torch.zeros(0, 12), torch.zeros(0))
    assert not gradient.any()
    assert (len(clipped.norms), clipped.nonfinite) == (0, 0)


def test_without_a_clip_norm_it_is_the_plain_sum():
    x, y = batch()
    gradient_of, gradient = prepared(mlp(), clip_norm=None)
    gradient_of(x, y)
    assert close(gradient, microbatches(mlp(), x, y, math.inf)[0]) < 1e-6


def test_flat_values_are_the_modules_parameters():
    module = mlp()
    before = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    parameters = FlatParameters(module)
    assert torch.equal(parameters.values.detach(), before)
    optimizer = torch.optim.SGD([parameters.values], lr=0.5)
    parameters.gradient.fill_(2.0)
    optimizer.step()
    after = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    assert torch.equal(after, before - 1.0)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8)), r"1 is a BatchNorm1d.*GroupNorm"),
        (nn.InstanceNorm1d(8, affine=True, track_running_stats=True), "running statistics"),
    ],
)
def test_modules_that_mix_samples_are_refused_with_the_fix(module, message):
    with pytest.raises(UsageError, match=message):
        prepared(module)


def test_parameters_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match=r"0.weight is torch.float64: call module.float"):
        FlatParameters(mlp().double())
    with pytest.raises(UsageError, match="no trainable parameter"):
        FlatParameters(mlp().requires_grad_(False))
