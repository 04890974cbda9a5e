"""The optimizer as part of the private step: noise, division and update where a sum is complete.

One collective reads gradients and hands out parameters. Between the two, each element's owner takes
the optimizer's step, so that momentum and moving averages exist once over all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dpcomm import _core, arrays
from dpcomm._core import UsageError
from dpcomm.privacy.clipping import Seen
from dpcomm.privacy.mlp import Mlp, Records
from dpcomm.privacy.step import PrivateStep


@dataclass
class Sgd:
    """torch.optim.SGD without dampening. Its numbers may change between steps, as by a schedule."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    @property
    def states(self) -> tuple[str, ...]:
        """What is kept for each parameter, by torch's names."""
        return ("momentum_buffer",) if self.momentum else ()

    def core(self, count: int) -> _core.Sgd:
        return _core.Sgd(self.lr, self.momentum, self.weight_decay, self.nesterov)


@dataclass
class Adam:
    """torch.optim.Adam, or AdamW with `decoupled_weight_decay`."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False

    states: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    def core(self, count: int) -> _core.Adam:
        return _core.Adam(
            self.lr, *self.betas, self.eps, self.weight_decay, self.decoupled_weight_decay, count
        )


class ShardedOptimizer:
    """The private step and then the optimizer's, on the ranks' flat buffers, in one collective.

    step: sums, noise and division. Other calls of it must not come between.
    gradient: float32 [P], where each rank leaves its clipped sum before a call.
    parameters: float32 [P], the same on all ranks; updated in place, to the same bits on every
        rank. To change them otherwise, do so on every rank, and call `adopt()`.
    optimizer: an `Sgd` or an `Adam`. Whether it has momentum is fixed from here on.

    Noise is drawn in the collective, not ahead of it: on 2 ranks it is 7% of a step of 256 records
    through 40-512-512-1, 4% through 40-64-32-1, below 1% of 4096. On one host a rank waits only for
    one that computes, and that has its own noise to draw then: the step would not end sooner.

    Constructing is collective, and so is every method. Raises UsageError for buffers of another
    size, and what a collective raises.
    """

    def __init__(
        self, step: PrivateStep, gradient: Any, parameters: Any, optimizer: Sgd | Adam
    ) -> None:
        self.step, self.optimizer = step, optimizer
        self.count = 0  # updates so far
        self._states = optimizer.states
        self._buffers = gradient, parameters  # alive while the core points to them
        self.core = step.sharded(gradient, parameters, len(self._states))

    def __call__(self) -> None:
        """One update. The gradient's content afterwards is of no meaning."""
        self.step.comm.settle()
        self.core.step(self.step.noise(self.step.begin()), self.next())

    def next(self) -> _core.Sgd | _core.Adam:
        """The optimizer's numbers for the next update, which from now on counts as made."""
        if self.optimizer.states != self._states:
            raise UsageError(
                f"the optimizer kept {self._states or 'nothing'} and now keeps "
                f"{self.optimizer.states or 'nothing'}: change its numbers, but not to or from 0 "
                "momentum"
            )
        self.count += 1
        return self.optimizer.core(self.count)

    def adopt(self) -> None:
        """Takes over parameters that were changed from outside, alike on all ranks."""
        self.core.adopt()

    def state_dict(self) -> dict[str, Any]:
        """The count, and each state in full, as arrays [P]: the same on every rank."""
        states = {name: np.empty(self.step.size, np.float32) for name in self._states}
        for index, state in enumerate(states.values()):
            self.core.gather(index, state.ctypes.data)
        return {"count": self.count, **states}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """What `state_dict` gave, on any number of ranks. Raises ValueError for what it did not."""
        if saved.keys() != {"count", *self._states}:
            raise ValueError(
                f"a state of {sorted(saved)} for an optimizer that keeps "
                f"{sorted(('count', *self._states))}"
            )
        for index, name in enumerate(self._states):
            view = arrays.buffer(saved[name], name, ("float32",))
            if view.count != self.step.size:
                raise ValueError(
                    f"{name} has {view.count} elements, the parameters {self.step.size}"
                )
            self.core.restore(index, view.pointer)
        self.count = int(saved["count"])


class NativeStep:
    """A whole training step of a chain of linear layers as one native call: Poisson sample, gather,
    forward, backward, clip, and what the ShardedOptimizer does. The next batch is drawn while this
    one computes.

    update: on the flat parameters and gradient of `mlp`.
    records: of which [begin, end) are this rank's.
    sampling_key: 32 bytes that all ranks share.
    private: clips by the step's rule; otherwise it neither clips nor counts.

    One call at a time, as for the Mlp. Raises UsageError for records that there are not.
    """

    def __init__(
        self,
        update: ShardedOptimizer,
        mlp: Mlp,
        records: Records,
        sampling_key: bytes,
        sample_rate: float,
        begin: int,
        end: int,
        private: bool = True,
    ) -> None:
        mlp.check(records, targets=True)
        if mlp.parameters != update.step.size:
            raise UsageError(
                f"a model of {mlp.parameters} parameters and an update of {update.step.size}"
            )
        self._update, self._private = update, private
        self._owners = mlp, records  # whose memory the core points to
        self._core = _core.NativeStep(
            update.core, mlp.core, records.core, sampling_key, sample_rate, begin, end
        )

    def __call__(self, batch: int) -> Seen:
        """Trains on the batch of this index, and says what this rank saw of it."""
        update, step = self._update, self._update.step
        step.comm.settle()
        rule = step.rule.core if self._private else None
        return Seen(*self._core(batch, step.noise(step.begin()), update.next(), rule))
