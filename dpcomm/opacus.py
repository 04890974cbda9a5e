"""Opacus with dpcomm underneath: the same training code, one import changed.

from dpcomm.opacus import PrivacyEngine     # was: from opacus import PrivacyEngine
from dpcomm.opacus import DPOptimizer       # was: from opacus.optimizers import DPOptimizer

Opacus forms the per-sample gradients (`p.grad_sample`), draws batches and accounts. dpcomm clips
and sums in one pass over memory, with a bound that holds to the last bit, sums over ranks, and adds
ChaCha20 noise once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from opacus import PrivacyEngine as OpacusEngine
from opacus.optimizers import DPOptimizer as OpacusOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed

from dpcomm import launch
from dpcomm._core import UsageError
from dpcomm.distributed import from_process_group
from dpcomm.privacy.clip import clip_sum
from dpcomm.privacy.step import PrivateStep


class DPOptimizer(OpacusOptimizer):
    """Opacus' optimizer, of one rank or several alike, in place of its distributed one too.

    Parameters, properties and hooks are Opacus'. `expected_batch_size` is, as there, that of one
    rank; the noisy sum of all ranks is divided by all of theirs. `comm` defaults to the ranks of
    torch.distributed's default group where there is one, else to this process alone. A rank with an
    empty batch calls `step()` like any other. `generator`, whose seed gives the noise away, is for
    tests; `secure_mode` changes nothing, for the noise is secure without.

    Parameters are float32 on the CPU; per-sample gradients float32, bfloat16 or float16. ValueError
    for others.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, comm: Any = None, **settings: Any):
        super().__init__(optimizer, **settings)
        if comm is None:
            comm = from_process_group() if dist.is_initialized() else launch.alone()
        self._comm = comm
        self._step: PrivateStep | None = None
        self._settings: tuple[Any, ...] = ()

    def clip_and_accumulate(self) -> None:
        """Adds the samples' clipped gradients to `p.summed_grad`."""
        for p in self.params:
            _check_processed_flag(p.grad_sample)
        total = clip_sum([g.contiguous() for g in self.grad_samples], self.max_grad_norm).total
        sizes = [p.numel() for p in self.params]
        for p, part in zip(self.params, total.split(sizes), strict=True):
            clipped = part.view_as(p)
            p.summed_grad = clipped if p.summed_grad is None else p.summed_grad + clipped
            _mark_as_processed(p.grad_sample)

    def add_noise(self) -> None:
        """Sets `p.grad` to the sum over ranks with noise, divided as `loss_reduction` says."""
        for p in self.params:
            _check_processed_flag(p.summed_grad)
        buffer = torch.cat([p.summed_grad.reshape(-1) for p in self.params])
        self._private_step(buffer.numel())(buffer)
        sizes = [p.numel() for p in self.params]
        for p, part in zip(self.params, buffer.split(sizes), strict=True):
            p.grad = part.view_as(p)
            _mark_as_processed(p.summed_grad)

    def scale_grad(self) -> None:
        """Nothing is left to do: the private step has divided."""

    def _private_step(self, size: int) -> PrivateStep:
        """One for as long as the settings stay the same: Opacus' schedulers change them."""
        divisor = 1.0
        if self.loss_reduction == "mean":
            divisor = self.expected_batch_size * self.accumulated_iterations * self._comm.size
        settings = (size, self.max_grad_norm, self.noise_multiplier, divisor)
        if self._step is None or settings != self._settings:
            seed = None
            if self.generator is not None and not self.secure_mode:
                seed = int(torch.randint(2**62, (), generator=self.generator))
            self._settings = settings
            self._step = PrivateStep(
                self._comm, *settings, no_noise=self.noise_multiplier == 0, unsafe_seed=seed
            )
        return self._step


class PrivacyEngine(OpacusEngine):
    """Opacus' engine, whose `make_private` returns the optimizer above.

    Raises UsageError for clippings other than "flat" and for ghost clipping, whose gradients are no
    longer those of samples.
    """

    def _prepare_optimizer(
        self,
        *,
        optimizer: torch.optim.Optimizer,
        distributed: bool = False,
        clipping: str = "flat",
        noise_generator: Any = None,
        grad_sample_mode: str = "hooks",
        **settings: Any,
    ) -> DPOptimizer:
        if clipping != "flat" or "ghost" in grad_sample_mode:
            raise UsageError(
                f"clipping={clipping!r}, grad_sample_mode={grad_sample_mode!r}: dpcomm clips flat "
                "per-sample gradients; use opacus.PrivacyEngine for others"
            )
        if isinstance(optimizer, OpacusOptimizer):
            optimizer = optimizer.original_optimizer
        return DPOptimizer(
            optimizer,
            comm=None if distributed else launch.alone(),
            generator=self.secure_rng if self.secure_mode else noise_generator,
            secure_mode=self.secure_mode,
            **settings,
        )
