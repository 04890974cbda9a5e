"""The private step's gradients for a chain of linear layers, in one native call.

Forward, loss, backward, the samples' norms from activations and output gradients, and the sum of
the clipped gradients, over flat float32 buffers on the CPU. Noise, reduction and update are other
parts: what comes out is what `clip_sum` would give on the per-sample gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpcomm import _core, arrays
from dpcomm.privacy.clipping import ClipRule, as_rule

ACTIVATIONS = ("none", "relu", "tanh", "sigmoid", "gelu")
LOSSES = ("binary_cross_entropy", "cross_entropy", "squared_error")


@dataclass(frozen=True)
class Layer:
    """x -> activation(W x + b) with W of shape [outputs, inputs]."""

    inputs: int
    outputs: int
    activation: str = "none"  # one of ACTIVATIONS
    bias: bool = True


class Records:
    """Records where they lie, numbered through: a batch is gathered from them by its ids.

    inputs: [N, features] float32, or a list of such (mapped shards, say); rows may be apart, so
        that `shard[:, :-1]` and `shard[:, -1]` of one array [N, features + 1] serve.
    targets: as many, [N] or [N, outputs] float32; for cross entropy [N], the class as a float.
        None where only outputs are asked for.

    Raises ValueError for other dtypes, devices, or shapes that do not fit each other.
    """

    def __init__(self, inputs: Any | Sequence[Any], targets: Any | Sequence[Any] | None = None):
        several = isinstance(inputs, (list, tuple))
        rows = [_matrix(x, "inputs") for x in (inputs if several else [inputs])]
        goals: list[arrays.Array | None] = [None] * len(rows)
        if targets is not None:
            goals = [_matrix(t, "targets") for t in (targets if several else [targets])]
        self.features = _width(rows, "inputs")
        self.targets = 0 if targets is None else _width(goals, "targets")
        segments = []
        for row, goal in zip(rows, goals, strict=True):
            if goal is not None and goal.shape[0] != row.shape[0]:
                raise ValueError(
                    f"{goal.shape[0]} targets for {row.shape[0]} inputs: pass one each"
                )
            place = (0, 0) if goal is None else (goal.pointer, goal.strides[0])
            segments.append((row.pointer, row.strides[0], *place, row.shape[0]))
        self._sources = [view.source for view in [*rows, *goals] if view is not None]
        self.core = _core.Records(segments)

    def __len__(self) -> int:
        return len(self.core)


@dataclass(frozen=True)
class Gradients:
    """A sum of gradients over a batch of B samples, and what there is to know of the samples."""

    total: Any  # float32 [P]
    nonfinite: int  # samples that were left out for a NaN or an infinity
    sensitivity: float  # the most that adding or removing one sample moves the total, in L2 norm


class Mlp:
    """A chain of linear layers and activations with its loss.

    Parameters are one flat float32 buffer [P]: for each layer W [outputs, inputs] row by row, then
    the bias, so that those of a torch nn.Sequential can be views of it. A sample's loss is the sum
    over its outputs, a total the sum over samples. Results have the same bits for any `threads`.

    One call at a time on one object: it holds the scratch.
    """

    def __init__(self, layers: Sequence[Layer], loss: str, *, threads: int = 1, isa: str = "auto"):
        self.layers = tuple(layers)
        self.loss = loss
        chain = [(x.inputs, x.outputs, x.bias, x.activation) for x in self.layers]
        self.core = _core.Mlp(chain, loss, threads, isa)
        self.parameters: int = self.core.parameters
        outputs = self.layers[-1].outputs
        self._targets = 1 if loss == "cross_entropy" else outputs

    def clipped_sum(
        self,
        parameters: Any,
        records: Records,
        clip_norm: float | ClipRule,
        total: Any,
        *,
        ids: np.ndarray | None = None,
        losses: np.ndarray | None = None,
        norms: np.ndarray | None = None,
        accumulate: bool = False,
    ) -> Gradients:
        """Writes into `total` [P], or adds to it, the samples' gradients clipped to `clip_norm`, or
        by a rule, whose layers are this chain's.

        parameters, total: float32 [P], arrays or `arrays.describe` of them (which saves its time).
        ids: int64 [B], the records of the batch; all of them if None.
        losses: float32 [B] and norms: float64 [B], before clipping, are written if given.

        No sample adds more than `clip_norm`, to the last bit; one that is not finite adds nothing
        and is counted. An empty batch gives zeros.

        Raises ValueError for an id that no record has, buffers of another size or dtype, or a clip
        norm that is not positive and finite.
        """
        self.check(records, targets=True)
        rule = as_rule(clip_norm)
        count = len(records) if ids is None else len(ids)
        nonfinite = self.core.clipped_sum(
            self._flat(parameters, "parameters"),
            records.core,
            ids,
            rule.core,
            self._flat(total, "total"),
            _address(losses, "losses", "float32", count),
            _address(norms, "norms", "float64", count),
            accumulate,
        )
        return Gradients(total, nonfinite, rule.sensitivity)

    def gradient_sum(
        self,
        parameters: Any,
        records: Records,
        total: Any,
        *,
        ids: np.ndarray | None = None,
        losses: np.ndarray | None = None,
        accumulate: bool = False,
    ) -> Gradients:
        """As `clipped_sum`, without clipping: plain training. A NaN is not left out."""
        self.check(records, targets=True)
        count = len(records) if ids is None else len(ids)
        self.core.gradient_sum(
            self._flat(parameters, "parameters"),
            records.core,
            ids,
            self._flat(total, "total"),
            _address(losses, "losses", "float32", count),
            accumulate,
        )
        return Gradients(total, 0, math.inf)

    def evaluate(
        self,
        parameters: Any,
        records: Records,
        *,
        ids: np.ndarray | None = None,
        losses: np.ndarray | None = None,
    ) -> np.ndarray:
        """The last layer's outputs, float32 [B, outputs], and the losses if asked for."""
        self.check(records, targets=losses is not None)
        count = len(records) if ids is None else len(ids)
        outputs = np.empty((count, self.layers[-1].outputs), np.float32)
        self.core.evaluate(
            self._flat(parameters, "parameters"),
            records.core,
            ids,
            outputs.ctypes.data,
            _address(losses, "losses", "float32", count),
        )
        return outputs

    def check(self, records: Records, targets: bool) -> None:
        if records.features != self.layers[0].inputs:
            raise ValueError(
                f"records of {records.features} features: the first layer takes "
                f"{self.layers[0].inputs}"
            )
        if targets and records.targets != self._targets:
            raise ValueError(
                f"records with {records.targets} targets each: {self.loss} takes {self._targets}"
            )

    def _flat(self, array: Any, name: str) -> int:
        return _address(array, name, "float32", self.parameters)


def _address(array: Any, name: str, dtype: str, count: int) -> int:
    if array is None:
        return 0
    view = array if isinstance(array, arrays.Array) else arrays.buffer(array, name, (dtype,))
    if view.dtype != dtype or view.device != "cpu" or view.count != count:
        raise ValueError(
            f"{name} of {view.count} {view.dtype} on {view.device}: pass {count} {dtype} on the cpu"
        )
    return view.pointer


def _matrix(array: Any, name: str) -> arrays.Array:
    view = arrays.describe(array)
    if view.dtype != "float32" or view.device != "cpu" or len(view.shape) not in (1, 2):
        raise ValueError(
            f"{name} of shape {view.shape} in {view.dtype} on {view.device}: "
            "pass [N, width] or [N] float32 on the cpu"
        )
    if len(view.shape) == 2 and view.shape[1] > 1 and view.strides[1] != 1:
        raise ValueError(
            f"{name} have strides {view.strides}: rows must lie without gaps; copy them"
        )
    return view


def _width(views: Sequence[arrays.Array | None], name: str) -> int:
    widths = {math.prod(view.shape[1:]) for view in views if view is not None}
    if len(widths) != 1:
        raise ValueError(
            f"{name} of {sorted(widths)} numbers a record: pass one or more, all alike"
        )
    return widths.pop()
