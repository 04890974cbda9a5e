"""Clipped per-sample gradients through an ordinary backward pass.

Hooks note what goes into each layer and the gradient of what comes out, from which its part of the
gradient follows (dpcomm/parts.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpcomm._core import UsageError
from dpcomm.parts import Use, parts_of
from dpcomm.torch import Clipped, FlatParameters, add_clipped, refuse_mixing


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
        placed = [
            part
            for layer, noted in by_layer.items()
            for part in parts_of(layer, [Use(c.input, _gradient(c) * scale) for c in noted])
        ]
        clipped = add_clipped(placed, self._parameters, self._clip_norm)
        return Clipped(torch.zeros(0), clipped.norms, clipped.nonfinite)


def _gradient(call: Call) -> Tensor:
    assert call.gradient is not None
    return call.gradient
