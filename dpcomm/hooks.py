"""Clipped per-sample gradients through an ordinary backward pass.

Hooks note what goes into each layer and the gradient of what comes out. From the two a linear
layer's norms and weighted sum follow without a per-sample gradient; of any other layer they are
formed, by the layer's own vector-Jacobian product under `torch.func.vmap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dpcomm._core import UsageError
from dpcomm.torch import Clipped, FlatParameters, clip_factors, refuse_mixing, scale_rows


@dataclass
class Call:
    """One use of a layer in a forward pass."""

    layer: nn.Module
    input: Tensor  # [B, …]
    gradient: Tensor | None = None  # of the output, [B, …], once backward has come by

    def note(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach()


class SampleHooks:
    """Watches the layers of a module, and adds up the clipped gradients of what passes through.

    Samples are the first dimension of every layer's input and output. `loss_reduction` says what
    the loss does to the samples' losses, "mean" or "sum": a mean's gradients are scaled back, since
    a bound on one sample must not depend on how many others there are.

    Raises UsageError for modules that mix samples, and for parameters that several layers share or
    that are used outside of a layer of their own.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: FlatParameters,
        clip_norm: float,
        loss_reduction: str = "mean",
    ) -> None:
        refuse_mixing(module)
        if loss_reduction not in ("mean", "sum"):
            raise UsageError(f"loss_reduction={loss_reduction!r}: use 'mean' or 'sum'")
        self._parameters, self._clip_norm = parameters, clip_norm
        self._mean = loss_reduction == "mean"
        self._calls: list[Call] = []
        owners: dict[Tensor, str] = {}
        for name, layer in module.named_modules():
            own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
            for parameter in own:
                if parameter in owners:
                    raise UsageError(
                        f"{name} shares a parameter with {owners[parameter]}: give each its own, "
                        "or train with dpcomm.torch.ClippedGradient, which takes shared ones"
                    )
                owners[parameter] = name
            if own and list(layer.children()):
                raise UsageError(
                    f"{name or 'the module'} ({type(layer).__name__}) holds parameters beside "
                    "layers, whose use no hook can see: put them into a layer of their own, or "
                    "train with dpcomm.torch.ClippedGradient"
                )
            if own:
                layer.register_forward_hook(self._note)

    def _note(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not layer.training or not torch.is_grad_enabled():
            return
        if len(args) != 1 or not isinstance(output, Tensor):
            raise UsageError(
                f"{type(layer).__name__} takes {len(args)} inputs and gives a "
                f"{type(output).__name__}: hooks can follow layers of one tensor to one tensor"
            )
        call = Call(layer, args[0].detach())
        output.register_hook(call.note)
        self._calls.append(call)

    def waiting(self) -> bool:
        """Whether samples were passed backward and not added yet."""
        return any(call.gradient is not None for call in self._calls)

    def forget(self) -> None:
        """Drops what was noted and not added."""
        self._calls.clear()

    def add_up(self) -> Clipped | None:
        """Adds the samples' clipped gradients to the flat gradient; None if there are none."""
        calls = [call for call in self._calls if call.gradient is not None]
        self._calls.clear()
        if not calls:
            return None
        sizes = {len(call.input) for call in calls} | {len(_gradient(call)) for call in calls}
        if len(sizes) != 1:
            raise UsageError(
                f"layers saw batches of {sorted(sizes)} samples in one pass: keep samples in the "
                "first dimension, and call optimizer.step() or zero_grad() after each batch"
            )
        (samples,) = sizes
        by_layer: dict[nn.Module, list[Call]] = {}
        for call in calls:
            by_layer.setdefault(call.layer, []).append(call)
        scale = float(samples) if self._mean else 1.0
        parts = [_part(layer, uses, scale) for layer, uses in by_layer.items()]
        squares = torch.stack([part.squares() for part in parts]).sum(0)
        norms = squares.sqrt()
        finite = norms.isfinite()
        factors = clip_factors(norms, self._clip_norm)
        whole = bool(finite.all())
        for part in parts:
            part.add(self._parameters, factors, None if whole else finite)
        return Clipped(torch.zeros(0), norms, samples - int(finite.sum()))


@dataclass
class _Linear:
    """A linear layer used once on a matrix: nothing is formed."""

    layer: nn.Linear
    input: Tensor
    gradient: Tensor

    def squares(self) -> Tensor:
        inputs = _squares(self.input)
        if self.layer.bias is not None and self.layer.bias.requires_grad:
            inputs = inputs + 1
        return inputs * _squares(self.gradient)

    def add(self, parameters: FlatParameters, factors: Tensor, finite: Tensor | None) -> None:
        a, g = self.input, self.gradient
        if finite is not None:
            a, g, factors = a[finite], g[finite], factors[finite]
        scaled = scale_rows(g, factors)
        parameters.gradient_of(self.layer.weight).addmm_(scaled.t(), a)
        if self.layer.bias is not None and self.layer.bias.requires_grad:
            parameters.gradient_of(self.layer.bias).add_(scaled.sum(0))


@dataclass
class _Formed:
    """Any other layer: its per-sample gradients, [B, *shape] for each parameter."""

    gradients: dict[Tensor, Tensor]

    def squares(self) -> Tensor:
        return torch.stack([_squares(g.flatten(1)) for g in self.gradients.values()]).sum(0)

    def add(self, parameters: FlatParameters, factors: Tensor, finite: Tensor | None) -> None:
        for parameter, g in self.gradients.items():
            if finite is not None:
                g = g[finite]
            weights = factors if finite is None else factors[finite]
            parameters.gradient_of(parameter).add_(torch.tensordot(weights, g, dims=1))


def _part(layer: nn.Module, calls: list[Call], scale: float) -> _Linear | _Formed:
    first = calls[0]
    once = len(calls) == 1 and first.input.dim() == 2
    if type(layer) is nn.Linear and layer.weight.requires_grad and once:
        return _Linear(cast(nn.Linear, layer), first.input, _gradient(first) * scale)
    named = {n: p for n, p in layer.named_parameters(recurse=False) if p.requires_grad}
    detached = {name: parameter.detach() for name, parameter in named.items()}

    def of_one(sample: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        def use(values: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(layer, values, (sample.unsqueeze(0),))

        return torch.func.vjp(use, detached)[1](gradient.unsqueeze(0))[0]

    total: dict[Tensor, Tensor] = {}
    for call in calls:
        formed = torch.func.vmap(of_one)(call.input, _gradient(call) * scale)
        for name, parameter in named.items():
            total[parameter] = (
                total[parameter] + formed[name] if parameter in total else formed[name]
            )
    return _Formed(total)


def _gradient(call: Call) -> Tensor:
    assert call.gradient is not None
    return call.gradient


def _squares(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()
