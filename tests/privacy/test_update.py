"""The fused step against noise and then the step in NumPy, to the bit; and against torch.optim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dpcomm
from dpcomm import _core

torch = pytest.importorskip("torch")

KEY = bytes(range(32))
ISAS = _core.noise_isas()
NOISE: dict[str, Any] = {"std": 0.7, "key": KEY, "step": 5, "scale": 0.125}

# name -> settings of sgd_update_ or adam_update_
SGD = {
    "plain": {"lr": 0.1},
    "decayed": {"lr": 0.1, "weight_decay": 0.01},
    "momentum": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "nesterov": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
}
ADAM = {
    "adam": {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1},
    "adamw": {"lr": 0.01, "betas": (0.8, 0.999), "eps": 1e-6, "weight_decay": 0.1,
              "decoupled_weight_decay": True},
}  # fmt: skip
f32 = np.float32


def arrays(count: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Parameters, gradient and two states, the second of which is a moving average of squares."""
    p, g, m, v = np.random.default_rng(seed).normal(size=(4, count)).astype(f32)
    return p, g, m, abs(v)


def in_numpy(name: str, p: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, count: int
             ) -> tuple[np.ndarray, ...]:  # fmt: skip
    """One float32 operation after the other."""
    s: dict[str, Any] = {"weight_decay": 0.0, "momentum": 0.0, "nesterov": False, "eps": 1e-8}
    s |= {**SGD, **ADAM}[name]
    lr, decay = s["lr"], s["weight_decay"]
    if name in SGD:
        d = g + f32(decay) * p
        if s["momentum"]:
            m = f32(s["momentum"]) * m + d
            d = d + f32(s["momentum"]) * m if s["nesterov"] else m
        return p - f32(lr) * d, m, v
    b1, b2 = s["betas"]
    if s.get("decoupled_weight_decay"):
        p = f32(1 - lr * decay) * p
    else:
        g = g + f32(decay) * p
    m = f32(b1) * m + f32(1 - b1) * g
    v = f32(b2) * v + f32(1 - b2) * (g * g)
    root = np.sqrt(v) * f32(1 / np.sqrt(1 - b2**count)) + f32(s["eps"])
    return p - f32(lr / (1 - b1**count)) * (m / root), m, v


def fused(name: str, p: Any, g: Any, m: Any, v: Any, count: int, **noise: Any) -> None:
    if name in ADAM:
        dpcomm.adam_update_(p, g, m, v, count=count, **ADAM[name], **noise)
    else:
        dpcomm.sgd_update_(p, g, m if "momentum" in SGD[name] else None, **SGD[name], **noise)


def optimizer(name: str) -> Any:
    if name in SGD:
        return _core.Sgd(**SGD[name])
    beta1, beta2 = ADAM[name]["betas"]
    return _core.Adam(beta1=beta1, beta2=beta2, count=3,
                      **{k: v for k, v in ADAM[name].items() if k != "betas"})  # fmt: skip


every = pytest.mark.parametrize("name", [*SGD, *ADAM])


@every
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("generator", ["chacha20", "philox"])
@pytest.mark.parametrize(("count", "offset"), [(0, 9), (1, 511), (1500, 77), (513, 2**40 + 3)])
def test_bits_are_those_of_noise_and_then_the_step(
    name: str, isa: str, generator: str, count: int, offset: int
) -> None:
    p, g, m, v = arrays(count)
    noisy = dpcomm.add_noise_(g.copy(), 0.7, KEY, 5, offset, generator, scale=0.125)
    expected = in_numpy(name, p, noisy, m, v, 3)
    states = [m, v] if name in ADAM else [m] if "momentum" in SGD[name] else []
    kept = g.copy()
    _core.update(
        g.ctypes.data, p.ctypes.data, [s.ctypes.data for s in states], count, offset,
        _core.NoiseSpec(KEY, 5, 0.7, generator), 0.125, optimizer(name), isa=isa,
    )  # fmt: skip
    for got, wanted in zip((p, m, v), expected, strict=True):
        assert got.tobytes() == wanted.tobytes()
    assert g.tobytes() == kept.tobytes()


@every
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("count", [1, 5000, 100_003])
def test_threads_do_not_change_the_bits(name: str, threads: int, count: int) -> None:
    one, several = arrays(count), arrays(count)
    fused(name, *one, 2, **NOISE, offset=100)
    fused(name, *several, 2, **NOISE, offset=100, threads=threads)
    for a, b in zip(one, several, strict=True):
        assert a.tobytes() == b.tobytes()


@every
def test_neighbours_of_the_shard_stay(name: str) -> None:
    whole = arrays(1000)
    before = [a.copy() for a in whole]
    fused(name, *(a[300:700] for a in whole), 1, **NOISE, offset=300)
    for a, b in zip(whole, before, strict=True):
        assert (a[:300] == b[:300]).all()
        assert (a[700:] == b[700:]).all()
    assert (whole[0][300:700] != before[0][300:700]).all()


@every
def test_ten_steps_are_those_of_torch(name: str) -> None:
    torch.manual_seed(0)
    start = torch.randn(400)
    theirs = torch.nn.Parameter(start.clone())
    settings = {k: v for k, v in {**SGD, **ADAM}[name].items() if k != "decoupled_weight_decay"}
    kind = (
        torch.optim.SGD
        if name in SGD
        else getattr(torch.optim, {"adam": "Adam"}.get(name, "AdamW"))
    )
    reference = kind([theirs], **settings)
    p, m, v = start.clone(), torch.zeros(400), torch.zeros(400)
    for count in range(1, 11):
        g = torch.randn(400)
        noise = NOISE | {"step": count}
        theirs.grad = dpcomm.add_noise_(g.clone(), 0.7, KEY, count, scale=0.125)
        reference.step()
        fused(name, p, g, m, v, count, **noise)
    torch.testing.assert_close(p, theirs.detach(), rtol=2e-5, atol=2e-6)


def test_what_does_not_fit_is_refused() -> None:
    p, g, m, v = arrays(8)
    sgd = {"lr": 0.1, **NOISE}
    with pytest.raises(ValueError, match="lr -1: give a finite number, 0 or more"):
        dpcomm.sgd_update_(p, g, **{**sgd, "lr": -1.0})
    with pytest.raises(ValueError, match="momentum nan"):
        dpcomm.sgd_update_(p, g, m, momentum=float("nan"), **sgd)
    with pytest.raises(ValueError, match="nesterov without momentum"):
        dpcomm.sgd_update_(p, g, nesterov=True, **sgd)
    with pytest.raises(ValueError, match="0 state buffers for an optimizer that keeps 1"):
        dpcomm.sgd_update_(p, g, momentum=0.9, **sgd)
    with pytest.raises(ValueError, match="1 state buffers for an optimizer that keeps 0"):
        dpcomm.sgd_update_(p, g, m, **sgd)
    with pytest.raises(ValueError, match="parameters has 7 elements on cpu, the gradient 8"):
        dpcomm.sgd_update_(p[:7], g, **sgd)
    with pytest.raises(ValueError, match="beta1 1: give a number from 0 to below 1"):
        dpcomm.adam_update_(p, g, m, v, count=1, betas=(1.0, 0.9), **NOISE)
    with pytest.raises(ValueError, match="the first update is number 1"):
        dpcomm.adam_update_(p, g, m, v, count=0, **NOISE)
    with pytest.raises(ValueError, match="standard deviation is -1"):
        dpcomm.sgd_update_(p, g, **{**sgd, "std": -1.0})
