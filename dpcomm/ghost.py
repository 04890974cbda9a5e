"""Clipped sums of gradients that are never formed ("ghost" clipping).

A linear layer's weight gradient for one sample is a sum of outer products over its positions,
Σₜ gₜ aₜᵀ, of the output's gradient g and the input a. Its norm follows from both alone, and the sum
of the clipped gradients is one product of matrices, (f∘g)ᵀ a, with the clip factors f.

With one position the norm is |g|·|a| (Goodfellow, arXiv:1510.01799, 2015). With T it is taken from
the Gram matrices, Σₜₛ (gₜ·gₛ)(aₜ·aₛ) (Li et al., "Large language models can be strong
differentially private learners", ICLR 2022), or from the sum itself, whichever takes fewer
multiplications (Bu et al., "Scalable and efficient training of large convolutional neural networks
with differential privacy", NeurIPS 2022).

The bound. What a sample adds, with its products taken exactly or each rounded to float32, has an L2
norm of at most the clip norm:

- Norms are float64, where squares and products of float32 are exact. A sum of n of them errs by at
  most n·2⁻⁵³ of the sum of their magnitudes, which the positions' |g|·|a| bound.
- The factor, factor times g, and that times a are rounded, each by at most one part in 2²⁴ of the
  product's magnitude: of the norm with one position, of Σₜ |gₜ||aₜ| with several, since these
  errors do not cancel where the products do.
- Factor times g is replaced by zero where it is no normal number, for it rounds by more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dpcomm.matrices import LayerSums, MatrixSums
from dpcomm.privacy.clipping import ClipRule, as_rule

_ROUNDINGS = 2.0**-22  # three of 2^-24, and what the float64 around them loses
_AT_ONCE = 1 << 25  # float64 numbers held to find norms: 256 MiB


class Measure(NamedTuple):
    """What bounds a sample's part of the gradient, each [B] float64."""

    squares: Tensor  # of its L2 norm
    most: Tensor  # what they would be if nothing cancelled
    flushed: Tensor | float = 0.0  # how far factors times g that are taken for zero can move it


@dataclass(frozen=True)
class OuterProducts:
    """A linear layer: y = W a + b at each position."""

    input: Tensor  # [B, T, d]
    gradient: Tensor  # [B, T, o], of y
    bias: bool = True

    def measure(self) -> Measure:
        inputs, outputs = self.input.shape[2], self.gradient.shape[2]
        positions = self.input.shape[1]
        a = _squares(self.input, 2) + self.bias  # the bias is the weight of an input of one
        g = _squares(self.gradient, 2)
        if positions == 1:
            squares = (a * g).squeeze(1)
            return Measure(squares, squares)
        most = (a * g).sqrt().sum(1).square()
        flushed = a.sqrt().sum(1) * outputs**0.5 * torch.finfo(torch.float32).tiny
        gram = positions * (inputs + outputs) <= inputs * outputs
        held = max(positions * max(positions, inputs, outputs), 0 if gram else inputs * outputs)
        find = self._by_gram if gram else self._by_sum
        squares = _in_parts(find, held, self.input, self.gradient)
        rounding = (positions**2 + inputs + outputs) * 2.0**-52
        return Measure(squares.clamp(min=0) + rounding * most, most, flushed)

    def _by_gram(self, a: Tensor, g: Tensor) -> Tensor:
        return ((a @ a.mT + self.bias) * (g @ g.mT)).sum((1, 2))

    def _by_sum(self, a: Tensor, g: Tensor) -> Tensor:
        squares = (g.mT @ a).square().sum((1, 2))
        return squares + g.sum(1).square().sum(1) if self.bias else squares

    def weighted(self, factors: Tensor) -> list[Tensor]:
        """Σ factor · gradient over the samples: of W [o, d] and, if there is one, of b [o]."""
        scaled = _scaled(self.gradient, factors).flatten(0, 1)
        weight = scaled.t() @ self.input.flatten(0, 1)
        return [weight, scaled.sum(0)] if self.bias else [weight]

    def is_matrix(self) -> bool:
        """Whether MatrixSums takes it."""
        one = self.input.shape[1] == 1
        return one and self.input.is_cpu and self.input.dtype == torch.float32

    def only(self, kept: Tensor) -> OuterProducts:
        return replace(self, input=self.input[kept], gradient=self.gradient[kept])


@dataclass(frozen=True)
class Lookups:
    """An embedding: at each position one row of the weight."""

    index: Tensor  # [B, T] int64
    gradient: Tensor  # [B, T, d], zero where the row takes none (padding)
    rows: int

    def measure(self) -> Measure:
        positions, columns = self.gradient.shape[1:]
        most = _squares(self.gradient, 2).sqrt().sum(1).square()
        held = positions * max(positions, columns)
        squares = _in_parts(self._by_gram, held, self.index, self.gradient)
        rounding = (positions**2 + columns) * 2.0**-52
        return Measure(squares.clamp(min=0) + rounding * most, most)

    def _by_gram(self, index: Tensor, g: Tensor) -> Tensor:
        same = index.unsqueeze(2) == index.unsqueeze(1)
        return (same * (g @ g.mT)).sum((1, 2))

    def weighted(self, factors: Tensor) -> list[Tensor]:
        """Σ factor · gradient over the samples, [rows, d]."""
        scaled = _scaled(self.gradient, factors).flatten(0, 1)
        return [scaled.new_zeros(self.rows, scaled.shape[1]).index_add_(
            0, self.index.flatten(), scaled)]  # fmt: skip

    def only(self, kept: Tensor) -> Lookups:
        return replace(self, index=self.index[kept], gradient=self.gradient[kept])


@dataclass(frozen=True)
class Formed:
    """Per-sample gradients that are there, [B, *shape] of each parameter."""

    gradients: list[Tensor]

    def measure(self) -> Measure:
        squares = torch.stack([_squares(g.flatten(1), 1) for g in self.gradients]).sum(0)
        return Measure(squares, squares)

    def weighted(self, factors: Tensor) -> list[Tensor]:
        return [torch.tensordot(factors.to(g.dtype), g, dims=1) for g in self.gradients]

    def only(self, kept: Tensor) -> Formed:
        return Formed([g[kept] for g in self.gradients])


Part = OuterProducts | Lookups | Formed  # of the gradient, by what is known of it


@dataclass(frozen=True)
class ClippedParts:
    """Σ over samples of the clipped gradient. All parts of a sample, or those of one of its layers,
    share a factor."""

    sums: list[list[Tensor]]  # for each part, its parameters' gradients
    norms: Tensor  # [B] float64, before clipping
    nonfinite: int  # samples that were left out for a NaN or an infinity
    sensitivity: float  # the most that adding or removing one sample moves the sums, in L2 norm


def clip_parts(
    parts: Sequence[Part], clip_norm: float | ClipRule, layers: Sequence[int] = ()
) -> ClippedParts:
    """Clips each sample's gradient, over all parts, to L2 norm `clip_norm`, and sums the samples.

    A rule with a norm for each layer needs `layers`, the number of each part's, and clips each
    layer's parts by themselves. Raises ValueError for a clip norm that is not positive, or parts of
    different batches.
    """
    rule = as_rule(clip_norm)
    with _exact():
        return _clip_parts(parts, rule, layers)


@contextmanager
def _exact() -> Iterator[None]:
    """Products of float32 in float32, whatever is allowed around: narrower ones break the bound."""
    with ExitStack() as stack:
        for device in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            stack.enter_context(torch.autocast(device, enabled=False))
        backends: Any = torch.backends
        if hasattr(backends.mkldnn, "matmul"):
            for products in (backends.cuda.matmul, backends.mkldnn.matmul):
                stack.callback(setattr, products, "fp32_precision", products.fp32_precision)
                products.fp32_precision = "ieee"
        else:  # before torch 2.9
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        yield


def _clip_parts(parts: Sequence[Part], rule: ClipRule, layers: Sequence[int]) -> ClippedParts:
    measures = [part.measure() for part in parts]
    if len({len(measure.squares) for measure in measures}) != 1:
        sizes = [len(measure.squares) for measure in measures]
        raise ValueError(
            f"layers of {sizes} samples: pass the same batch for each, and at least one"
        )
    together = layers if len(rule.norms) > 1 else [0] * len(parts)
    groups = {layer: _total(m for m, of in zip(measures, together, strict=True) if of == layer)
              for layer in dict.fromkeys(together)}  # fmt: skip
    whole = _total(groups.values())
    norms = whole.squares.sqrt()
    finite = norms.isfinite() & whole.most.isfinite()
    factors = {
        layer: _factors(measure, rule.norms[layer], rule.stability).masked_fill_(~finite, 0.0)
        for layer, measure in groups.items()
    }
    nonfinite = len(norms) - int(finite.sum())
    kept = factors
    if nonfinite:  # left out, not scaled: 0·NaN is NaN
        parts = [part.only(finite) for part in parts]
        kept = {layer: some[finite] for layer, some in factors.items()}
    sums = [part.weighted(kept[of]) for part, of in zip(parts, together, strict=True)]
    return ClippedParts(sums, norms, nonfinite, rule.sensitivity)


def _total(measures: Iterable[Measure]) -> Measure:
    """Of parts together."""
    several = list(measures)
    if len(several) == 1:
        return several[0]
    squares = torch.stack([measure.squares for measure in several]).sum(0)
    most = torch.stack([measure.most for measure in several]).sum(0)
    return Measure(squares, most, sum(measure.flushed for measure in several))


def _factors(measure: Measure, clip_norm: float, stability: float) -> Tensor:
    """The largest float32 [B] that keep the bound; without stability none is above 1."""
    longest = measure.squares.sqrt() + _ROUNDINGS * measure.most.sqrt() + stability
    exact = ((clip_norm - measure.flushed) / longest).clamp(0.0, None if stability else 1.0)
    rounded = exact.float()
    below = torch.nextafter(rounded, torch.zeros_like(rounded))
    return torch.where(rounded.double() > exact, below, rounded)


def clip_linear(
    activations: Tensor | Sequence[Tensor],
    output_grads: Tensor | Sequence[Tensor],
    clip_norm: float | ClipRule,
    *,
    bias: bool | Sequence[bool] = True,
) -> ClippedParts:
    """`clip_sum` for linear layers, from what goes in and the gradient of what comes out.

    activations: [B, d] or [B, …, d], the input of a layer, or a list for several layers, which are
        clipped together, by the norm over all of them.
    output_grads: [B, o] or [B, …, o], the gradient of each sample's loss by the layer's output.
    clip_norm: or a rule, whose norms, if there are several, are those of the layers.
    bias: whether the layer has one; for several layers also a list.

    The middle dimensions are positions that use the same weight, as in a sequence. torch tensors
    on any device; 16-bit ones are taken as float32. Equals clip_sum over gradients that were formed
    one sample at a time, within rounding, and keeps its bound. `.sums` has for each layer the
    weight's [o, d] and, where there is one, the bias' [o].

    Raises ValueError for shapes that do not fit and a clip norm that is not positive.
    """
    inputs = [activations] if isinstance(activations, Tensor) else list(activations)
    gradients = [output_grads] if isinstance(output_grads, Tensor) else list(output_grads)
    biases = [bias] * len(inputs) if isinstance(bias, bool) else list(bias)
    if not len(inputs) == len(gradients) == len(biases):
        raise ValueError(
            f"{len(inputs)} activations, {len(gradients)} output gradients and {len(biases)} "
            "biases: pass one of each for every layer"
        )
    rule = as_rule(clip_norm)
    parts = [outer_products(*layer) for layer in zip(inputs, gradients, biases, strict=True)]
    one_batch = len({len(part.input) for part in parts}) == 1
    if not (one_batch and all(part.is_matrix() for part in parts)):
        return clip_parts(parts, rule, range(len(parts)))
    uses = [(part.input.squeeze(1), part.gradient.squeeze(1)) for part in parts]
    layers = [
        LayerSums(
            g.new_empty(g.shape[1], a.shape[1]), g.new_empty(g.shape[1]) if part.bias else None
        )
        for part, (a, g) in zip(parts, uses, strict=True)
    ]
    norms, nonfinite = MatrixSums(layers).add(uses, len(uses[0][0]), rule, fresh=True)
    sums = [[one for one in layer if one is not None] for layer in layers]
    return ClippedParts(sums, norms, nonfinite, rule.sensitivity)


def outer_products(a: Tensor, g: Tensor, bias: bool) -> OuterProducts:
    """Of [B, …, d] and [B, …, o]. Raises ValueError where their positions differ."""
    if a.dim() < 2 or a.shape[:-1] != g.shape[:-1]:
        raise ValueError(
            f"activations of shape {list(a.shape)} with output gradients of {list(g.shape)}: "
            "both need the same leading dimensions, samples first, as [B, d] and [B, o]"
        )
    return OuterProducts(_wide(_as_positions(a)), _wide(_as_positions(g)), bias)


def _as_positions(x: Tensor) -> Tensor:
    return x.unsqueeze(1) if x.dim() == 2 else x.flatten(1, -2)


def _wide(x: Tensor) -> Tensor:
    x = x.detach()
    return x if x.dtype == torch.float64 else x.float()


def _squares(rows: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=dim, dtype=torch.float64).square()


def _scaled(rows: Tensor, factors: Tensor) -> Tensor:
    """rows [B, …] times factors [B], with products that are no normal numbers as zero.

    Small ones round by more than one part in 2^24, which a large input would bring back above the
    norm; a factor above 1, of automatic clipping, could make others infinite.
    """
    scaled = rows * factors.to(rows.dtype).view(-1, *[1] * (rows.dim() - 1))
    magnitude = scaled.abs()
    normal = (magnitude >= torch.finfo(scaled.dtype).tiny) & magnitude.isfinite()
    return scaled.masked_fill_(~normal, 0)


def _in_parts(find: Callable[..., Tensor], held: int, *tensors: Tensor) -> Tensor:
    """`find` over some samples at a time, each of which holds `held` float64 numbers."""
    rows = max(1, _AT_ONCE // max(1, held))

    def wide() -> Iterator[Tensor]:
        for some in zip(*(tensor.split(rows) for tensor in tensors), strict=True):
            yield find(*(x.double() if x.is_floating_point() else x for x in some))

    return torch.cat(list(wide()))
