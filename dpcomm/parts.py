"""What a layer's part of the per-sample gradient is, by what went in and the gradient of what came
out: outer products for linear layers and convolutions, lookups for embeddings, small rows for
norms. Any other layer's is formed, by its own vector-Jacobian product under `torch.func.vmap`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpcomm import ghost


class Use(NamedTuple):
    """A layer in a forward pass, samples first."""

    input: Tensor
    gradient: Tensor  # of the output


class PlacedPart(NamedTuple):
    """A part, and the parameters that its sums are the gradients of."""

    part: ghost.Part
    parameters: Sequence[Tensor]
    rows: slice = slice(None)  # of each


def is_known(layer: nn.Module) -> bool:
    """Whether the layer's norms need no per-sample gradient larger than its input."""
    frozen = [name for name, p in layer.named_parameters(recurse=False) if not p.requires_grad]
    if "weight" in frozen:
        return False
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        plain = not isinstance(layer.padding, str) and layer.padding_mode == "zeros"
        return type(layer) in (nn.Conv1d, nn.Conv2d) and plain
    if isinstance(layer, nn.Embedding):
        plain = layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
        return type(layer) is nn.Embedding and plain
    if type(layer) in (nn.LayerNorm, nn.GroupNorm):
        return not frozen
    return type(layer) is nn.Linear


def parts_of(uses: Mapping[nn.Module, Sequence[Use]]) -> list[PlacedPart]:
    """The parts of layers over all their uses in a pass. Those of tied layers are found together:
    the gradient of what they share is a sum over all of them."""
    by_parameter: dict[Tensor, list[nn.Module]] = {}
    for layer in uses:
        for parameter in layer.parameters(recurse=False):
            by_parameter.setdefault(parameter, []).append(layer)
    tied = {layer for layers in by_parameter.values() if len(layers) > 1 for layer in layers}
    parts = [part for layer in uses if layer not in tied for part in _of_one(layer, uses[layer])]
    return [*parts, *_of_tied({layer: uses[layer] for layer in uses if layer in tied})]


def _of_tied(uses: Mapping[nn.Module, Sequence[Use]]) -> list[PlacedPart]:
    """Shared weights of linear layers and embeddings, as an output layer's with the embedding that
    feeds it: outer products over the uses of all. Anything else is formed, and added up."""
    products: dict[Tensor, list[ghost.OuterProducts]] = {}
    formed: dict[Tensor, Tensor] = {}
    for layer, some in uses.items():
        own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        if is_known(layer) and isinstance(layer, (nn.Linear, nn.Embedding)):
            weight, *bias = own
            each = [_product(layer, use) for use in some]
            products.setdefault(weight, []).extend(each)
            gradients = [torch.cat([one.gradient for one in each], 1).sum(1)] if bias else []
            own = bias
        else:
            gradients = _formed(layer, some)
        for parameter, gradient in zip(own, gradients, strict=True):
            formed[parameter] = formed.get(parameter, 0) + gradient
    return [
        *(PlacedPart(_joined(each, False), [p]) for p, each in products.items()),
        *(PlacedPart(ghost.Formed([gradient]), [p]) for p, gradient in formed.items()),
    ]


def _product(layer: nn.Linear | nn.Embedding, use: Use) -> ghost.OuterProducts:
    """What a use adds to the gradient of the weight."""
    if isinstance(layer, nn.Linear):
        return ghost.outer_products(use.input, use.gradient, False)
    found = _lookups(layer, [use])
    chosen = functional.one_hot(found.index, found.rows).to(found.gradient.dtype)
    return ghost.OuterProducts(found.gradient, chosen, False)


def _of_one(layer: nn.Module, uses: Sequence[Use]) -> list[PlacedPart]:
    parameters = [p for p in layer.parameters(recurse=False) if p.requires_grad]
    if not is_known(layer):
        return [PlacedPart(ghost.Formed(_formed(layer, uses)), parameters)]
    if isinstance(layer, nn.Linear):
        return [PlacedPart(_products(uses, len(parameters) == 2), parameters)]
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return _convolution(layer, uses, parameters)
    if isinstance(layer, nn.Embedding):
        return [PlacedPart(_lookups(layer, uses), parameters)]
    return [PlacedPart(ghost.Formed(_normalised(layer, uses)), parameters)]


def _products(uses: Iterable[Use], bias: bool) -> ghost.OuterProducts:
    return _joined([ghost.outer_products(use.input, use.gradient, bias) for use in uses], bias)


def _joined(each: Sequence[ghost.OuterProducts], bias: bool) -> ghost.OuterProducts:
    if len(each) == 1:
        return each[0]
    return ghost.OuterProducts(
        torch.cat([products.input for products in each], 1),
        torch.cat([products.gradient for products in each], 1),
        bias,
    )


def _convolution(
    layer: nn.Conv1d | nn.Conv2d, uses: Sequence[Use], parameters: Sequence[Tensor]
) -> list[PlacedPart]:
    """A linear layer over the patches of each group of channels."""
    settings = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    assert not isinstance(layer.padding, str)
    groups, outputs = layer.groups, layer.out_channels // layer.groups

    def patches(use: Use) -> tuple[Tensor, Tensor]:
        x = use.input
        kernel, dilation, padding, stride = settings
        if isinstance(layer, nn.Conv1d):  # an image of one line
            x = x.unsqueeze(2)
            kernel, dilation, padding, stride = (
                (1, *kernel), (1, *dilation), (0, *padding), (1, *stride)
            )  # fmt: skip
        columns = functional.unfold(x, kernel, dilation, padding, stride)  # type: ignore[arg-type]
        return columns.mT, use.gradient.flatten(2).mT  # [B, T, channels * kernel], [B, T, outputs]

    unfolded = [patches(use) for use in uses]
    placed = []
    for group in range(groups):
        inputs = [a.tensor_split(groups, 2)[group] for a, _ in unfolded]
        gradients = [g.tensor_split(groups, 2)[group] for _, g in unfolded]
        products = _products(map(Use, inputs, gradients), len(parameters) == 2)
        rows = slice(group * outputs, (group + 1) * outputs)
        placed.append(PlacedPart(products, parameters, rows))
    return placed


def _lookups(layer: nn.Embedding, uses: Iterable[Use]) -> ghost.Lookups:
    index = torch.cat([use.input.flatten(1) for use in uses], 1)
    gradient = torch.cat(
        [use.gradient.reshape(len(index), -1, layer.embedding_dim).float() for use in uses], 1
    )
    if layer.padding_idx is not None:
        gradient = gradient.masked_fill((index == layer.padding_idx).unsqueeze(2), 0.0)
    return ghost.Lookups(index, gradient, layer.num_embeddings)


def _normalised(layer: nn.Module, uses: Iterable[Use]) -> list[Tensor]:
    """Of a LayerNorm or GroupNorm: [B, *shape] is no larger than what went in."""
    total: list[Tensor] = []
    for use in uses:
        g = use.gradient
        if isinstance(layer, nn.GroupNorm):
            x = functional.group_norm(use.input, layer.num_groups, eps=layer.eps)
            positions = tuple(range(2, g.dim()))
        else:
            assert isinstance(layer, nn.LayerNorm)
            x = functional.layer_norm(use.input, layer.normalized_shape, eps=layer.eps)
            positions = tuple(range(1, g.dim() - len(layer.normalized_shape)))
        formed = [rows.sum(positions) if positions else rows for rows in (g * x, g)]
        total = [a + b for a, b in zip(total, formed, strict=True)] if total else formed
    return total[: len(list(layer.parameters()))]


def _formed(layer: nn.Module, uses: Iterable[Use]) -> list[Tensor]:
    named = {n: p for n, p in layer.named_parameters(recurse=False) if p.requires_grad}
    detached = {name: parameter.detach() for name, parameter in named.items()}

    def of_one(sample: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        def use(values: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(layer, values, (sample.unsqueeze(0),))

        return torch.func.vjp(use, detached)[1](gradient.unsqueeze(0))[0]

    per_sample: Any = torch.func.vmap(of_one)
    each = [per_sample(*use) for use in uses]
    return [torch.stack([formed[name] for formed in each]).sum(0) for name in named]
