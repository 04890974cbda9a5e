"""Clipped gradients of torch modules: each sample's bounded, then summed, into one flat buffer.

For a chain of linear layers no per-sample gradient is ever formed. A layer's weight gradient for a
sample is the outer product of its output gradient g and its input a, so its norm is |g|·|a|
(Goodfellow 2015), and the sum of clipped gradients is one product of matrices, (f∘g)ᵀ a, with the
clip factors f. Any other module goes through `torch.func`, which forms them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dpcomm._core import UsageError
from dpcomm.privacy.clip import clip_sum
from dpcomm.privacy.mlp import Layer

logger = logging.getLogger("dpcomm")

# A contribution is rounded three times on its way into the sum (factor, factor times output
# gradient, times input), each time up by at most one part in 2^24.
_ROUNDED_DOWN = 1 - 2.0**-22

_MOST_LAYERS = 64  # of the native step: kMostLayers in csrc/model/mlp_lanes.hpp
_MATERIALISED = 1 << 26  # elements of per-sample gradients held at once: 256 MiB of float32

Loss = Callable[[Tensor, Tensor], Tensor]


class FlatParameters:
    """The trainable parameters of a module, moved into one flat float32 tensor.

    `values` [P] is a leaf for an optimizer, and its `grad` is `gradient` [P]; the module's own
    parameters are views of the one, in the order of `module.parameters()`. Raises UsageError for a
    parameter that is not float32 on the CPU, or where nothing is trainable.
    """

    def __init__(self, module: nn.Module, gradient: Tensor | None = None) -> None:
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise UsageError("the module has no trainable parameter: set requires_grad on some")
        for name, parameter in named:
            if parameter.dtype != torch.float32:
                raise UsageError(f"parameter {name} is {parameter.dtype}: call module.float()")
        self.all = [parameter for _, parameter in named]
        self.size = sum(parameter.numel() for parameter in self.all)
        self.gradient = torch.zeros(self.size) if gradient is None else gradient
        flat = torch.cat([parameter.detach().reshape(-1) for parameter in self.all])
        self.values = nn.Parameter(flat)
        self.values.grad = self.gradient
        self._gradients: dict[Tensor, Tensor] = {}
        begin = 0
        for parameter in self.all:
            piece = slice(begin, begin + parameter.numel())
            parameter.data = self.values.data[piece].view(parameter.shape)
            self._gradients[parameter] = self.gradient[piece].view(parameter.shape)
            begin = piece.stop

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
    contributes zero. `clip_norm=None` neither clips nor counts: plain SGD, for comparison.

    Raises UsageError for modules that mix the samples of a batch.
    """

    def __init__(
        self, module: nn.Module, parameters: FlatParameters, loss: Loss, clip_norm: float | None
    ) -> None:
        refuse_mixing(module)
        self._module, self._parameters, self._loss = module, parameters, loss
        self._clip_norm = clip_norm
        self._layers = _linear_layers(module)
        self._proved = False  # that the layers' norms are the norms of the whole gradient

    def __call__(self, inputs: Tensor, targets: Tensor) -> Clipped:
        """Overwrites the gradient; inputs [B, …], targets [B, …], an empty batch included."""
        if len(inputs) == 0:
            self._parameters.gradient.zero_()
            return Clipped(torch.zeros(0), torch.zeros(0, dtype=torch.float64), 0)
        if self._clip_norm is None:
            return self._plain(inputs, targets)
        if not self._proved:
            self._prove(inputs[:2], targets[:2])
        if self._layers:
            return self._without_materialising(inputs, targets, self._clip_norm)
        return self._materialising(inputs, targets, self._clip_norm)

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
            logger.info("not only linear layers: per-sample gradients by torch.func, held in full")
            return
        training = self._module.training
        self._module.eval()  # dropout draws differently on the two ways
        try:
            layers = self._record(inputs, targets)[1]
            expected = self._per_sample_gradients(inputs, targets).double().norm(dim=1)
        finally:
            self._module.train(training)
        if layers is None or not torch.allclose(
            _norms(layers), expected, rtol=1e-4, equal_nan=True
        ):
            self._layers = []
            logger.info("linear layers do not tell it all: per-sample gradients by torch.func")

    def _without_materialising(self, inputs: Tensor, targets: Tensor, clip_norm: float) -> Clipped:
        losses, layers = self._record(inputs, targets)
        if layers is None:
            raise RuntimeError("a linear layer was used otherwise than in the first batch")
        norms = _norms(layers)
        finite = norms.isfinite()
        nonfinite = len(norms) - int(finite.sum())
        factors = clip_factors(norms, clip_norm)
        for layer, a, g in layers:
            if nonfinite:  # zeroed, not scaled: 0·NaN is NaN
                a, g = a[finite], g[finite]
            scaled = scale_rows(g, factors[finite] if nonfinite else factors)
            torch.mm(scaled.t(), a, out=self._parameters.gradient_of(layer.weight))
            if layer.bias is not None:
                torch.sum(scaled, 0, out=self._parameters.gradient_of(layer.bias))
        return Clipped(losses, norms, nonfinite)

    def _record(
        self, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, list[tuple[nn.Linear, Tensor, Tensor]] | None]:
        """Losses [B], and each layer with its inputs and output gradients [B, …].

        None in place of the layers if one of them was not used once, on a matrix.
        """
        calls: list[tuple[nn.Linear, Tensor, Tensor]] = []

        def note(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(layer, nn.Linear)
            calls.append((layer, args[0].detach(), output))

        hooks = [layer.register_forward_hook(note) for layer in self._layers]
        try:
            losses = self._loss(self._module(inputs), targets)
        finally:
            for hook in hooks:
                hook.remove()
        layers = [layer for layer, _, _ in calls]
        if {*layers} != {*self._layers} or len(layers) != len(self._layers):
            return losses.detach(), None
        if any(a.dim() != 2 for _, a, _ in calls):
            return losses.detach(), None
        gradients = torch.autograd.grad(losses.sum(), [output for _, _, output in calls])
        return losses.detach(), [
            (layer, a, g) for (layer, a, _), g in zip(calls, gradients, strict=True)
        ]

    def _materialising(self, inputs: Tensor, targets: Tensor, clip_norm: float) -> Clipped:
        gradient = self._parameters.gradient
        gradient.zero_()
        norms, nonfinite = [], 0
        rows = max(1, _MATERIALISED // self._parameters.size)
        for part, labels in zip(inputs.split(rows), targets.split(rows), strict=True):
            clipped = clip_sum(self._per_sample_gradients(part, labels), clip_norm)
            gradient += clipped.total
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


def _norms(layers: list[tuple[nn.Linear, Tensor, Tensor]]) -> Tensor:
    """The norm of each sample's gradient over all layers, [B] float64.

    In float64 the squares of float32 are exact, and their sum errs by far less than one part in
    2^24, which is what the clip factors allow for.
    """
    squares = 0.0
    for layer, a, g in layers:
        inputs = torch.linalg.vector_norm(a, dim=1, dtype=torch.float64).square()
        if layer.bias is not None:
            inputs = inputs + 1  # the bias is a weight of an input that is always one
        squares = (
            squares + inputs * torch.linalg.vector_norm(g, dim=1, dtype=torch.float64).square()
        )
    return torch.as_tensor(squares).sqrt()


def clip_factors(norms: Tensor, clip_norm: float) -> Tensor:
    """[B] float32, rounded towards zero: no scaled sample's norm is above the clip norm."""
    exact = (clip_norm * _ROUNDED_DOWN / norms).clamp(max=1.0)
    factors = exact.float()
    down = torch.nextafter(factors, torch.zeros(()))
    return torch.where(factors.double() > exact, down, factors)


def scale_rows(rows: Tensor, factors: Tensor) -> Tensor:
    """rows [B, …] times factors [B], with products that are no normal numbers as zero.

    Those round by more than one part in 2^24, which a large input would bring back above the norm.
    """
    scaled = rows * factors.view(-1, *[1] * (rows.dim() - 1))
    return scaled.masked_fill_(scaled.abs() < torch.finfo(scaled.dtype).tiny, 0)


def _linear_layers(module: nn.Module) -> list[nn.Linear]:
    """The module's trainable linear layers, if between them they hold its parameters, once each."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    layers = [m for m in module.modules() if type(m) is nn.Linear and m.weight.requires_grad]
    held = [p for layer in layers for p in layer.parameters()]
    same = len(held) == len(trainable) and {*held} == {*trainable}
    return layers if same else []


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
