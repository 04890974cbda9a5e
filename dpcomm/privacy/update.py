"""Noise, division and the optimizer's step in one pass over a shard.

What comes out is what `add_noise_` and then the optimizer of torch.optim would give: the noise with
the same bits, and the step with float32 operations of a fixed order, each rounded, so that it has
the same bits on every processor and GPU (csrc/privacy/update_rule.hpp).
"""

from __future__ import annotations

from typing import Any

from dpcomm import _core, arrays, cuda
from dpcomm.privacy.noise import Counter


def sgd_update_(
    parameters: Any,
    gradient: Any,
    momentum_buffer: Any = None,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    std: float,
    key: bytes,
    step: Any,
    offset: int = 0,
    generator: str = "chacha20",
    scale: float = 1.0,
    threads: int = 1,
) -> Any:
    """One step of torch.optim.SGD, in place, with the noisy mean `(gradient + noise) * scale`.

    parameters, gradient: contiguous float32 of one size, on the CPU or a GPU; their first element
        is element `offset` of the whole. The gradient is the sum over samples, and stays as it is.
    momentum_buffer: like them, zeros at first; needed with momentum, and only then.
    std, key, step, offset, generator, scale: as in `add_noise_`.

    Returns `parameters`. Raises ValueError for another dtype, size, device or layout, and for
    settings that torch.optim.SGD refuses.
    """
    states = [] if momentum_buffer is None else [("momentum_buffer", momentum_buffer)]
    optimizer = _core.Sgd(lr, momentum, weight_decay, nesterov)
    at = Counter(step, "step", _device_of(gradient))
    noise = _core.NoiseSpec(key, at.known, std, generator)
    _update(parameters, gradient, states, noise, offset, scale, optimizer, threads, at.address)
    at.advance()
    return parameters


def adam_update_(
    parameters: Any,
    gradient: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    *,
    count: Any,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    std: float,
    key: bytes,
    step: Any,
    offset: int = 0,
    generator: str = "chacha20",
    scale: float = 1.0,
    threads: int = 1,
) -> Any:
    """One step of torch.optim.Adam, in place, with the noisy mean `(gradient + noise) * scale`.

    exp_avg, exp_avg_sq: the moving averages, like `parameters`, zeros at first.
    count: which update of these parameters this is, from 1: it corrects the averages' bias. An
        integer; or, as `step`, an array of one int64, whose corrections a GPU computes itself, in
        float64, to the last bit or next to it.
    decoupled_weight_decay: the weight decay of AdamW.

    The rest is as in `sgd_update_`.
    """
    states = [("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)]
    device = _device_of(gradient)
    at, updates = Counter(step, "step", device), Counter(count, "count", device)
    number, corrections = updates.known, None
    if updates.address:
        number, corrections = 1, _corrections(count.double(), lr, *betas)
    optimizer = _core.Adam(lr, *betas, eps, weight_decay, decoupled_weight_decay, number)
    noise = _core.NoiseSpec(key, at.known, std, generator)
    _update(parameters, gradient, states, noise, offset, scale, optimizer, threads, at.address,
            corrections)  # fmt: skip
    at.advance()
    updates.advance()
    return parameters


def _device_of(array: Any) -> str:
    return arrays.describe(array).device


def _corrections(count: Any, lr: float, beta1: float, beta2: float) -> Any:
    """lr / (1 - beta1^count) and 1 / sqrt(1 - beta2^count), [2] float32, of a float64 on a GPU."""
    both = count.new_empty(2)
    both[0] = lr / (1 - beta1**count)
    both[1] = (1 - beta2**count) ** -0.5
    return both.float()


def _update(
    parameters: Any,
    gradient: Any,
    states: list[tuple[str, Any]],
    noise: _core.NoiseSpec,
    offset: int,
    scale: float,
    optimizer: _core.Sgd | _core.Adam,
    threads: int,
    counter: int = 0,
    corrections: Any = None,
) -> None:
    named = [("gradient", gradient), ("parameters", parameters), *states]
    views = [arrays.buffer(array, name, ("float32",), gpu=True) for name, array in named]
    first = views[0]
    for (name, _), view in zip(named, views, strict=True):
        if (view.count, view.device) != (first.count, first.device):
            raise ValueError(
                f"{name} has {view.count} elements on {view.device}, the gradient {first.count} "
                f"on {first.device}: pass the same part of each"
            )
    if first.device != "cpu":
        place = 0 if corrections is None else arrays.describe(corrections).pointer
        return cuda.update_(views, noise, offset, scale, optimizer, counter, place)
    pointers = [view.pointer for view in views]
    _core.update(
        pointers[0], pointers[1], pointers[2:], first.count, offset, noise, scale, optimizer,
        threads=threads,
    )  # fmt: skip
    return None
