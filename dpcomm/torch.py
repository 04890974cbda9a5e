"""Clipped gradients of torch modules: each sample's bounded, then summed, into one flat buffer.

Of the usual layers no per-sample gradient is ever formed (dpcomm/ghost.py); a module that has
others, or uses a weight outside of its layer, goes through `torch.func`, which forms them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dpcomm._core import UsageError
from dpcomm.ghost import ClippedParts, Formed, clip_parts
from dpcomm.parts import PlacedPart, Use, is_known, parts_of
from dpcomm.privacy import clip
from dpcomm.privacy.clipping import ClipRule, as_rule
from dpcomm.privacy.mlp import Layer

logger = logging.getLogger("dpcomm")

_MOST_LAYERS = 64  # of the native step: kMostLayers in csrc/model/mlp_lanes.hpp
_MATERIALISED = 1 << 26  # elements of per-sample gradients held at once: 256 MiB of float32

Loss = Callable[[Tensor, Tensor], Tensor]


class FlatParameters:
    """The trainable parameters of a module, moved into one flat float32 tensor.

    `values` [P] is a leaf for an optimizer, and its `grad` is `gradient` [P]; the module's own
    parameters are views of the one, in the order of `module.parameters()`. `empty` makes the two,
    as with `comm.empty` in memory that other ranks see. Raises UsageError for a parameter that is
    not float32 on the CPU, or where nothing is trainable.
    """

    def __init__(self, module: nn.Module, empty: Callable[[int], Tensor] = torch.empty) -> None:
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise UsageError("the module has no trainable parameter: set requires_grad on some")
        for name, parameter in named:
            if parameter.dtype != torch.float32:
                raise UsageError(f"parameter {name} is {parameter.dtype}: call module.float()")
        self.all = [parameter for _, parameter in named]
        self.size = sum(parameter.numel() for parameter in self.all)
        self.gradient = empty(self.size).zero_()
        flat = torch.cat([parameter.detach().reshape(-1) for parameter in self.all])
        self.values = nn.Parameter(empty(self.size).copy_(flat))
        self.values.grad = self.gradient
        for owner, view in self.views(self.values.data).items():
            owner.data = view
        self._gradients = self.views(self.gradient)
        self._layers = _layer_numbers(module)
        self.layers = 1 + max(self._layers.values())

    def views(self, flat: Tensor) -> dict[Tensor, Tensor]:
        """The part of `flat` [P] that is each parameter's, in its shape."""
        pieces = flat.split([parameter.numel() for parameter in self.all])
        return {p: piece.view(p.shape) for p, piece in zip(self.all, pieces, strict=True)}

    def layer_of(self, parameter: Tensor) -> int:
        """The number of the layer that holds it; layers that share a parameter count as one."""
        return self._layers[parameter]

    def gradient_of(self, parameter: Tensor) -> Tensor:
        """The part of `gradient` that is `parameter`'s, in its shape."""
        return self._gradients[parameter]


@dataclass(frozen=True)
class Clipped:
    """What is known of a batch once its clipped sum is in the gradient buffer. All un-noised."""

    losses: Tensor  # [B]
    norms: Tensor  # [B] float64, before clipping
    nonfinite: int  # samples with a NaN or an infinity in their gradient: they contributed zero


class ClippedGradient:
    """Writes the sum of a batch's clipped per-sample gradients into a module's flat gradient.

    `loss(outputs, targets)` gives one loss a sample, [B]. A sample's gradient, over all trainable
    parameters, is scaled to L2 norm at most `clip_norm`, to the last bit; one that is not finite
    contributes zero. `clip_norm=None` neither clips nor counts: plain SGD, for comparison. `rule`,
    which it becomes, may change between calls.

    Raises UsageError for modules that mix the samples of a batch.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: FlatParameters,
        loss: Loss,
        clip_norm: float | ClipRule | None,
    ) -> None:
        refuse_mixing(module)
        self._module, self._parameters, self._loss = module, parameters, loss
        self.rule = None if clip_norm is None else as_rule(clip_norm)
        self._layers = _known_layers(module)
        self._proved = False  # that the layers' norms are the norms of the whole gradient

    def __call__(self, inputs: Tensor, targets: Tensor) -> Clipped:
        """Overwrites the gradient; inputs [B, …], targets [B, …], an empty batch included."""
        if len(inputs) == 0:
            self._parameters.gradient.zero_()
            return Clipped(torch.zeros(0), torch.zeros(0, dtype=torch.float64), 0)
        if self.rule is None:
            return self._plain(inputs, targets)
        if not self._proved:
            self._prove(inputs[:2], targets[:2])
        if self._layers:
            return self._without_materialising(inputs, targets, self.rule)
        return self._materialising(inputs, targets, self.rule)

    def _plain(self, inputs: Tensor, targets: Tensor) -> Clipped:
        losses = self._loss(self._module(inputs), targets)
        parameters = self._parameters.all
        gradients = torch.autograd.grad(losses.sum(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            self._parameters.gradient_of(parameter).copy_(gradient)
        return Clipped(losses.detach(), torch.zeros(0, dtype=torch.float64), 0)

    def _prove(self, inputs: Tensor, targets: Tensor) -> None:
        """Falls back on per-sample gradients unless the layers alone give the same norms.

        They do not where a weight is also used outside of its layer, or samples are mixed. Hooks
        cannot see either, so two samples are done both ways, once.
        """
        self._proved = True
        if not self._layers:
            logger.info("a layer of no known kind: per-sample gradients by torch.func, in full")
            return
        with evaluating(self._module):  # dropout draws differently on the two ways
            placed = self._record(inputs, targets)[1]
            expected = self._per_sample_gradients(inputs, targets).double().norm(dim=1)
        if placed is not None:
            norms = clip_parts([one.part for one in placed], 1.0).norms
        if placed is None or not torch.allclose(norms, expected, rtol=1e-4, equal_nan=True):
            self._layers = []
            logger.info("the layers do not tell it all: per-sample gradients by torch.func")

    def _without_materialising(self, inputs: Tensor, targets: Tensor, rule: ClipRule) -> Clipped:
        losses, placed = self._record(inputs, targets)
        if placed is None:
            raise RuntimeError("a layer was used otherwise than in the first batch")
        self._parameters.gradient.zero_()
        clipped = add_clipped(placed, self._parameters, rule)
        return Clipped(losses, clipped.norms, clipped.nonfinite)

    def _record(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, list[PlacedPart] | None]:
        """Losses [B], and the layers' parts of the gradient; None if some layer was not used."""
        calls: list[tuple[nn.Module, Tensor, Tensor]] = []

        def note(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            calls.append((layer, args[0].detach(), output))

        hooks = [layer.register_forward_hook(note) for layer in self._layers]
        try:
            losses = self._loss(self._module(inputs), targets)
        finally:
            for hook in hooks:
                hook.remove()
        if {layer for layer, _, _ in calls} != {*self._layers}:
            return losses.detach(), None
        if any(len(tensor) != len(inputs) for _, *pair in calls for tensor in pair):
            return losses.detach(), None
        gradients = torch.autograd.grad(losses.sum(), [output for _, _, output in calls])
        uses: dict[nn.Module, list[Use]] = {}
        for (layer, a, _), g in zip(calls, gradients, strict=True):
            uses.setdefault(layer, []).append(Use(a, g))
        return losses.detach(), parts_of(uses)

    def _materialising(self, inputs: Tensor, targets: Tensor, rule: ClipRule) -> Clipped:
        parameters = self._parameters
        parameters.gradient.zero_()
        norms, nonfinite = [], 0
        rows = max(1, _MATERIALISED // parameters.size)
        for part, labels in zip(inputs.split(rows), targets.split(rows), strict=True):
            gradients = self._per_sample_gradients(part, labels)
            clipped: clip.Clipped | ClippedParts
            if rule.stability or len(rule.norms) > 1:
                each = zip(parameters.all, gradients.split([p.numel() for p in parameters.all], 1),
                           strict=True)  # fmt: skip
                placed = [PlacedPart(Formed([rows]), [p]) for p, rows in each]
                clipped = add_clipped(placed, parameters, rule)
            else:
                clipped = clip.clip_sum(gradients, rule.norms[0])
                parameters.gradient.add_(clipped.total)
            norms.append(clipped.norms.double())
            nonfinite += clipped.nonfinite
        with torch.no_grad():
            losses = self._loss(self._module(inputs), targets)
        return Clipped(losses, torch.cat(norms), nonfinite)

    def _per_sample_gradients(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """[B, P], each row in the order of the flat parameters."""
        named = {n: p for n, p in self._module.named_parameters() if p.requires_grad}

        def loss_of_one(values: dict[str, Tensor], sample: Tensor, target: Tensor) -> Tensor:
            output = torch.func.functional_call(self._module, values, (sample.unsqueeze(0),))
            return self._loss(output, target.unsqueeze(0)).sum()

        per_sample: Any = torch.func.vmap(
            torch.func.grad(loss_of_one), in_dims=(None, 0, 0), randomness="different"
        )
        gradients = per_sample({n: p.detach() for n, p in named.items()}, inputs, targets)
        return torch.cat([gradients[name].flatten(1) for name in named], dim=1)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode; then each part has its own mode again, which need not be the whole's."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def linear_chain(module: nn.Module) -> list[Layer] | None:
    """The layers of a module that is nothing but linear layers and activations in a row, all
    trainable: what the native step can stand in for. None for any other."""
    if type(module) is not nn.Sequential or module._forward_hooks or module._forward_pre_hooks:
        return None
    layers: list[Layer] = []
    for part in module:
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks:
            return None
        if type(part) is nn.Linear:
            layers.append(Layer(part.in_features, part.out_features, bias=part.bias is not None))
        elif layers and layers[-1].activation == "none" and (name := _activation(part)):
            layers[-1] = replace(layers[-1], activation=name)
        else:
            return None
    parameters = list(module.parameters())
    expected = sum(2 if layer.bias else 1 for layer in layers)  # fewer, where some are shared
    whole = len(parameters) == expected and all(p.requires_grad for p in parameters)
    return layers if 0 < len(layers) <= _MOST_LAYERS and whole else None


def _activation(part: nn.Module) -> str | None:
    if isinstance(part, nn.GELU) and part.approximate != "none":
        return None
    names = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.GELU: "gelu"}
    return names.get(type(part))


def add_clipped(
    placed: list[PlacedPart], parameters: FlatParameters, rule: ClipRule
) -> ClippedParts:
    """Adds the samples' clipped gradients to the flat gradient."""
    layers = [parameters.layer_of(one.parameters[0]) for one in placed]
    clipped = clip_parts([one.part for one in placed], rule, layers)
    for one, sums in zip(placed, clipped.sums, strict=True):
        for parameter, gradient in zip(one.parameters, sums, strict=True):
            rows = parameters.gradient_of(parameter)[one.rows]
            rows.add_(gradient.view_as(rows))
    return clipped


def _known_layers(module: nn.Module) -> list[nn.Module]:
    """The layers that hold the module's trainable parameters, if all are of known kinds."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    layers = [m for m in module.modules() if any(p.requires_grad for p in m.parameters(False))]
    held = [p for layer in layers for p in layer.parameters(False) if p.requires_grad]
    return layers if {*held} == {*trainable} and all(map(is_known, layers)) else []


def _layer_numbers(module: nn.Module) -> dict[Tensor, int]:
    """For each trainable parameter the number of its layer, those that share one being one."""
    numbers: dict[Tensor, int] = {}
    for index, layer in enumerate(module.modules()):
        own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        met = {numbers[p] for p in own if p in numbers}
        numbers |= dict.fromkeys(own, index) | {p: index for p, n in numbers.items() if n in met}
    order = {number: k for k, number in enumerate(dict.fromkeys(numbers.values()))}
    return {p: order[number] for p, number in numbers.items()}


def refuse_mixing(module: nn.Module) -> None:
    for name, part in module.named_modules():
        kind = type(part).__name__
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise UsageError(
                f"{name or 'the module'} is a {kind}, which mixes the samples of a batch, so that "
                "clipping one sample no longer bounds what it changes. Fix: use nn.GroupNorm or "
                "nn.LayerNorm in its place"
            )
        if isinstance(part, nn.modules.instancenorm._InstanceNorm) and part.track_running_stats:
            raise UsageError(
                f"{name or 'the module'} is an {kind} that keeps running statistics of private "
                "samples, without noise. Fix: track_running_stats=False"
            )
