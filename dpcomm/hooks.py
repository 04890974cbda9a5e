"""Clipped per-sample gradients through an ordinary backward pass.

Noted is what goes into each layer and the gradient of what comes out, from which its part of the
gradient follows (dpcomm/parts.py). Linear layers get no plain gradient that nobody would use; a
module of nothing else, each used on one matrix, takes one native call.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dpcomm._core import UsageError
from dpcomm.matrices import LayerSums, MatrixSums
from dpcomm.parts import PlacedPart, Use, parts_of
from dpcomm.privacy.clipping import ClipRule, as_rule
from dpcomm.torch import FlatParameters, add_clipped, refuse_mixing

logger = logging.getLogger("dpcomm")


@dataclass
class Call:
    """One use of a layer in a forward pass."""

    layer: nn.Module
    input: Tensor  # [B, …]
    gradient: Tensor | None = None  # of the output, [B, …], once backward has come by

    def note(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach() if gradient.requires_grad else gradient


class _Linear(torch.autograd.Function):
    """A linear layer whose parameters get no gradient: the call notes what one is made of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, call: Call) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(weight)
        return nn.functional.linear(x, weight, cast(nn.Linear, call.layer).bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,) = gradients
        ctx.call.note(gradient)
        (weight,) = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return gradient @ weight.to(gradient.dtype), None, None  # of half width under autocast


@dataclass(frozen=True)
class _Matrices:
    """What a pass through linear layers alone needs each time."""

    layers: list[nn.Module]
    sums: MatrixSums
    numbers: list[int]  # the layers'
    others: list[Tensor]  # gradients of parameters that these layers do not hold


@dataclass(frozen=True)
class Added:
    """What is known of samples whose clipped gradients were added up. Un-noised."""

    norms: Tensor  # [B] float64, before clipping
    nonfinite: int  # samples that were left out


class SampleHooks:
    """Watches the layers of a module, and adds up the clipped gradients of what passes through.

    Samples are the first dimension of every layer's input and output. `loss_reduction` says what
    the loss does to the samples' losses, "mean" or "sum": a mean's gradients are scaled back, since
    a bound on one sample must not depend on how many others there are.

    `rule` is what bounds them, and may change between batches.

    Raises UsageError for modules that mix samples, and for parameters that no layer holds. A use of
    a parameter outside of its layers, as `F.linear(h, embedding.weight)`, is not seen: its part of
    the gradient is left out, and a warning says so after the first batch.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: FlatParameters,
        clip_norm: float | ClipRule,
        loss_reduction: str = "mean",
    ) -> None:
        refuse_mixing(module)
        if loss_reduction not in ("mean", "sum"):
            raise UsageError(f"loss_reduction={loss_reduction!r}: use 'mean' or 'sum'")
        self._parameters, self.rule = parameters, as_rule(clip_norm)
        self._mean = loss_reduction == "mean"
        self._calls: list[Call] = []
        self._forming = False  # per-sample gradients, by calling the layers again
        self._looked = False  # for uses of parameters that no hook sees
        self._names = {parameter: name for name, parameter in module.named_parameters()}
        self._owners: dict[Tensor, nn.Module] = {}
        self._tied: set[nn.Module] = set()
        self._sums: dict[nn.Module, LayerSums] = {}
        self._matrices: _Matrices | None = None  # of the last pass that there was
        for name, layer in module.named_modules():
            own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
            for parameter in own:
                parameter.grad = None  # of an earlier training, which is not part of this one
                if parameter in self._owners:
                    self._tied |= {layer, self._owners[parameter]}
                self._owners[parameter] = layer
            if own and list(layer.children()):
                raise UsageError(
                    f"{name or 'the module'} ({type(layer).__name__}) holds parameters beside "
                    "layers, whose use no hook can see: put them into a layer of their own, or "
                    "train with dpcomm.torch.ClippedGradient"
                )
            if type(layer) is nn.Linear and layer.weight.requires_grad:
                self._watch_linear(layer)
            elif own:
                layer.register_forward_hook(self._note)

    def _watches(self, layer: nn.Module) -> bool:
        return layer.training and torch.is_grad_enabled() and not self._forming

    def _watch_linear(self, layer: nn.Linear) -> None:
        plain = layer.forward
        weight, bias = self._parameters.gradient_of(layer.weight), None
        if layer.bias is not None and layer.bias.requires_grad:
            bias = self._parameters.gradient_of(layer.bias)
        self._sums[layer] = LayerSums(weight, bias)

        def forward(x: Tensor) -> Tensor:
            if not self._watches(layer):
                return plain(x)
            if x.dim() < 2:
                output = plain(x)
                self._note(layer, (x,), output)
                return output
            call = Call(layer, x.detach())
            self._calls.append(call)
            return cast(Tensor, _Linear.apply(x, layer.weight, call))

        layer.forward = forward  # type: ignore[method-assign, assignment]

    def _note(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._watches(layer):
            return
        if len(args) != 1 or not isinstance(output, Tensor):
            raise UsageError(
                f"{type(layer).__name__} takes {len(args)} inputs and gives a "
                f"{type(output).__name__}: hooks can follow layers of one tensor to one tensor"
            )
        call = Call(layer, args[0].detach())
        output.register_hook(call.note)
        self._calls.append(call)

    def waiting(self) -> int:
        """How many samples were passed backward and not added yet."""
        passed = [call.input.shape[0] for call in self._calls if call.gradient is not None]
        return max(passed, default=0)

    def forget(self) -> None:
        """Drops what was noted and not added."""
        self._calls.clear()

    def forget_passed(self) -> None:
        """The same, but for what has yet to be passed backward."""
        self._calls = [call for call in self._calls if call.gradient is None]

    def add_up(self, fresh: bool = False) -> Added | None:
        """Adds the samples' clipped gradients to the flat gradient, which if `fresh` counts as
        zero; None, and nothing is done, if there are no samples."""
        calls = [call for call in self._calls if call.gradient is not None]
        self._calls.clear()
        if not calls:
            return None
        sizes = {x.shape[0] for call in calls for x in (call.input, _gradient(call))}
        if len(sizes) != 1:
            raise UsageError(
                f"layers saw batches of {sorted(sizes)} samples in one pass: keep samples in the "
                "first dimension, and call optimizer.step() or zero_grad() after each batch"
            )
        (samples,) = sizes
        scale = float(samples) if self._mean else 1.0
        by_layer: dict[nn.Module, list[Call]] = {}
        for call in calls:
            by_layer.setdefault(call.layer, []).append(call)
        if not self._looked:
            self._look_for_other_uses(by_layer)
        if not self._tied and all(map(self._is_matrix, by_layer.values())):
            return self._add_matrices(
                [uses[0] for uses in by_layer.values()], samples, scale, fresh
            )
        if fresh:
            self._parameters.gradient.zero_()
        placed = self._parts_of(by_layer, scale)
        clipped = add_clipped(placed, self._parameters, self.rule)
        return Added(clipped.norms, clipped.nonfinite)

    def _parts_of(
        self, by_layer: dict[nn.Module, list[Call]], scale: float = 1.0
    ) -> list[PlacedPart]:
        self._forming = True
        try:
            return parts_of(
                {
                    layer: [Use(call.input, _gradient(call) * scale) for call in noted]
                    for layer, noted in by_layer.items()
                }
            )
        finally:
            self._forming = False

    def _look_for_other_uses(self, by_layer: dict[nn.Module, list[Call]]) -> None:
        """Warns of parameters whose plain gradient is more than their layers': none for linear
        ones, which form none, and for others the sum of what the hooks saw."""
        self._looked = True
        forming = {layer: noted for layer, noted in by_layer.items() if layer not in self._sums}
        seen: dict[Tensor, Tensor] = {}
        for part, parameters, rows in self._parts_of(forming):
            samples = len(next(iter(forming.values()))[0].input)
            sums = part.weighted(torch.ones(samples, device=parameters[0].device))
            for parameter, total in zip(parameters, sums, strict=True):
                known = seen.setdefault(parameter, torch.zeros_like(parameter))[rows]
                known += total.view_as(known)
        for parameter, name in self._names.items():
            if (plain := parameter.grad) is None:
                continue
            unseen = plain - seen.get(parameter, torch.zeros_like(plain))
            if unseen.norm() > 1e-2 * plain.norm():
                logger.warning(
                    "%s has a gradient beside its layer's, by a use outside of the layer or a term "
                    "of the loss on parameters alone: it is left out. Layers that share a weight "
                    "hold the same parameter each; weight decay is the optimizer's",
                    name,
                )

    def _is_matrix(self, uses: list[Call]) -> bool:
        """A linear layer used once on [B, inputs], in float32."""
        x, gradient = uses[0].input, _gradient(uses[0])
        once = len(uses) == 1 and x.dim() == 2 and uses[0].layer in self._sums
        return once and x.dtype == gradient.dtype == torch.float32

    def _add_matrices(self, calls: list[Call], samples: int, scale: float, fresh: bool) -> Added:
        layers = [call.layer for call in calls]
        made = self._matrices
        if not made or made.layers != layers or made.sums.threads != torch.get_num_threads():
            made = self._matrices = self._make_matrices(layers)
        norms, nonfinite = made.sums.add(
            [(call.input, _gradient(call)) for call in calls],
            samples,
            self.rule.of(made.numbers),
            scale,
            fresh,
        )
        if fresh:
            for gradient in made.others:
                gradient.zero_()
        return Added(norms, nonfinite)

    def _make_matrices(self, layers: list[nn.Module]) -> _Matrices:
        sums = [self._sums[layer] for layer in layers]
        others = [p for p, owner in self._owners.items() if owner not in layers]
        return _Matrices(
            layers,
            MatrixSums(sums),
            [self._parameters.layer_of(cast(Tensor, layer.weight)) for layer in layers],
            [self._parameters.gradient_of(parameter) for parameter in others],
        )


def _gradient(call: Call) -> Tensor:
    assert call.gradient is not None
    return call.gradient
