"""The private step: sum over ranks, noise where an element is complete, divide, hand out."""

from __future__ import annotations

import hashlib
import math
import os
from typing import Any

import numpy as np

from dpcomm import _core, arrays, cuda
from dpcomm._core import UsageError
from dpcomm.privacy.clipping import Adaptive, ClipRule, Seen, as_rule


class PrivateStep:
    """Turns the ranks' clipped sums into one noisy mean, in place, the same bits on every rank.

    comm: the ranks. Constructing is collective, as is every call.
    size: elements of the flat buffer.
    clip_norm: the most that one record moves the sum, in L2 norm (`Clipped.sensitivity`), or the
        rule that bounds it.
    noise_multiplier: the noise's standard deviation over the clip norm. 0 draws none and must be
        confirmed by `no_noise=True`.
    expected_batch: the constant by which the noisy sum is divided: sample rate times records over
        all ranks, never the size of the batch that was drawn.
    adaptive: lets the clip norm follow a quantile of the samples' norms, from what `adapt` is told
        after each step; `rule` is what the next step's sums must obey. `noise_multiplier` covers
        that too: the gradients have a little more noise of their own.
    algo: an all-reduce schedule by name, None to choose.

    The key of the noise is drawn by rank 0 from the operating system, known to this job's memory
    alone, and never used for another launch; `key_hash` is for the log. Each call draws the noise
    of its own index, counted here, so that none is drawn twice. `unsafe_seed` replaces the key for
    tests: whoever knows the seed can take the noise off again.
    """

    def __init__(
        self,
        comm: Any,
        size: int,
        clip_norm: float | ClipRule,
        noise_multiplier: float,
        expected_batch: float,
        *,
        adaptive: Adaptive | None = None,
        algo: str | None = None,
        generator: str = "chacha20",
        threads: int = 1,
        no_noise: bool = False,
        unsafe_seed: int | None = None,
    ) -> None:
        self.rule = as_rule(clip_norm)
        if adaptive and (len(self.rule.norms) > 1 or self.rule.stability):
            raise UsageError("adaptive: a norm that adapts is one for the whole gradient")
        if not 0 <= noise_multiplier < math.inf:
            raise UsageError(
                f"noise_multiplier={noise_multiplier}: give a finite number, 0 or more"
            )
        if (noise_multiplier == 0) != no_noise:
            raise UsageError(
                f"noise_multiplier={noise_multiplier} with no_noise={no_noise}: a step without "
                "noise is not private; ask for it by both, or for neither"
            )
        if not 0 < expected_batch < math.inf:
            raise UsageError(
                f"expected_batch={expected_batch}: give sample rate times records, over all ranks"
            )
        if algo is not None and algo not in _core.algorithms():
            raise UsageError(f"algo={algo!r} is unknown: use {', '.join(_core.algorithms())}")
        self.size, self.noise_multiplier = size, noise_multiplier
        self.steps = 0  # noise is drawn for
        self.comm, self._algo, self._threads = comm, algo or "", threads
        self._adaptive, self._adapted = adaptive, 0
        self._multiplier = (  # of the gradients alone
            adaptive.gradient_multiplier(noise_multiplier) if adaptive else noise_multiplier
        )
        self._scale = 1 / expected_batch
        self._generator = generator
        self._key = shared_key(comm, unsafe_seed)

    @property
    def key_hash(self) -> str:
        """Names the key without telling it."""
        return hashlib.sha256(b"dpcomm noise key" + self._key).hexdigest()[:16]

    def __call__(self, buffer: Any) -> Any:
        """buffer [size] float32, this rank's clipped sum: replaced by the noisy mean over all. On a
        CUDA GPU, over NCCL, the noise has the same bits.

        Raises UsageError for another buffer, and what a collective raises. After an error the
        step's noise counts as used.
        """
        view = arrays.buffer(buffer, "buffer", ("float32",), gpu=True)
        self._check(view, "buffer")
        self.comm.settle()
        self._part(view, self.noise(self.begin()), 0)
        return buffer

    def begin(self) -> int:
        """The index of a new step, for `part`. Its noise counts as used from here on."""
        self.steps += 1
        return self.steps - 1

    def noise(self, step: int) -> _core.NoiseSpec:
        """The gradients' noise in a step that was begun, by the rule of now."""
        std = self._multiplier * self.rule.sensitivity
        return _core.NoiseSpec(self._key, step, std, self._generator)

    def adapt(self, seen: Seen) -> None:
        """Moves an adaptive clip norm by what this rank `seen` in the step just taken, its samples'
        norms against `rule`; does nothing to a fixed one.

        Collective; the same norm on all ranks. Raises UsageError for a second time in one step,
        whose noise would be the same.
        """
        if self._adaptive is None:
            return
        if self._adapted == self.steps:
            raise UsageError("adapt: the clip norm has followed this step already; take another")
        self._adapted = self.steps
        self.comm.settle()
        count = np.array([seen.within - seen.samples / 2], np.float32)
        std = self._adaptive.unclipped_num_std if self.noise_multiplier else 0.0
        # The element behind the gradient's last has a noise of its own.
        noise = _core.NoiseSpec(self._key, self.steps - 1, std, self._generator)
        self._part(arrays.describe(count), noise, self.size)
        norm = self._adaptive.next_norm(self.rule.norms[0], 0.5 + float(count[0]))
        self.rule = ClipRule((norm,))

    def part(self, buffer: Any, step: int, offset: int) -> None:
        """A call for the elements from `offset` on, of a step that is taken in parts.

        No element may be in two parts of a step, which would have the same noise; the parts are in
        the same order on every rank.
        """
        view = arrays.buffer(buffer, "buffer", ("float32",), gpu=True)
        if offset + view.count > self.size:
            raise UsageError(f"elements {offset} to {offset + view.count} of {self.size}")
        self._part(view, self.noise(step), offset)

    def _part(self, view: arrays.Array, noise: _core.NoiseSpec, offset: int) -> None:
        if view.device != "cpu":
            self._part_on_gpu(view, noise, offset)
            return
        _core.private_step(
            self.comm.core,
            view.pointer,
            view.count,
            noise,
            self._scale,
            self._algo,
            self._threads,
            offset,
        )

    def _part_on_gpu(self, view: arrays.Array, noise: _core.NoiseSpec, offset: int) -> None:
        kernels, at = cuda.kernels(), cuda.place(view)

        def finish(pointer: int, begin: int, count: int) -> None:
            kernels.add_noise(at, pointer, count, offset + begin, noise, self._scale)

        stream = self.comm.stream(view, view)
        self.comm.core.all_reduce_with(
            view.pointer, view.count, "float32", "sum", self._algo, finish, stream
        )

    def sharded(self, gradient: Any, parameters: Any, states: int) -> _core.ShardedUpdate:
        """This step followed by an optimizer's, in one collective: see `ShardedOptimizer`."""
        views = [
            arrays.buffer(gradient, "gradient", ("float32",)),
            arrays.buffer(parameters, "parameters", ("float32",)),
        ]
        for view, name in zip(views, ("gradient", "parameters"), strict=True):
            self._check(view, name)
        return _core.ShardedUpdate(
            self.comm.core,
            views[0].pointer,
            views[1].pointer,
            self.size,
            states,
            self._scale,
            self._algo,
            self._threads,
        )

    def _check(self, view: arrays.Array, name: str) -> None:
        if view.count != self.size:
            raise UsageError(
                f"rank {self.comm.rank}/{self.comm.size}: a {name} of {view.count} elements "
                f"for a step of {self.size}: pass the whole flat gradient"
            )


def shared_key(comm: Any, unsafe_seed: int | None = None) -> bytes:
    """32 secret bytes that all ranks know: drawn on rank 0, or made of a seed. Collective."""
    key = np.zeros(32, np.uint8)
    if unsafe_seed is not None:
        digest = hashlib.sha256(b"dpcomm unsafe seed %d" % unsafe_seed).digest()
        key[:] = np.frombuffer(digest, np.uint8)
    elif comm.rank == 0:
        key[:] = np.frombuffer(os.urandom(32), np.uint8)
    return comm.broadcast(key).tobytes()
