"""`make_private`: a torch module, optimizer and data loader made private, in the shape of Opacus.

model, optimizer, loader = dpcomm.make_private(
    module=model, optimizer=optimizer, data_loader=loader,
    noise_multiplier=1.1, max_grad_norm=1.0,
)
for x, y in loader:
    optimizer.zero_grad()
    loss(model(x), y).backward()
    optimizer.step()
print(optimizer.get_epsilon(delta=1e-5))
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from dpcomm import accounting
from dpcomm._core import UsageError
from dpcomm.accounting import Release, Steps
from dpcomm.comm import shared_bytes
from dpcomm.hooks import SampleHooks
from dpcomm.loader import PrivateLoader
from dpcomm.privacy.clipping import Adaptive, ClipRule, Seen, seen
from dpcomm.privacy.ledger import Ledger, Toll
from dpcomm.privacy.optimizer import Adam, Sgd, ShardedOptimizer
from dpcomm.privacy.plan import SECURE, UNSAFE, Plan, check_same, default_delta
from dpcomm.privacy.step import PrivateStep
from dpcomm.torch import FlatParameters

logger = logging.getLogger("dpcomm")


def make_private(
    *,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    data_loader: DataLoader,
    max_grad_norm: float,
    noise_multiplier: float | None = None,
    target_epsilon: float | None = None,
    target_delta: float | None = None,
    epochs: int | None = None,
    loss_reduction: str = "mean",
    max_physical_batch_size: int | None = None,
    clipping: str = "flat",
    target_unclipped_quantile: float = 0.5,
    clipbound_learning_rate: float = 0.2,
    unclipped_num_std: float | None = None,
    truncated_batch_size: int | None = None,
    accountant: str = "pld",
    ledger: str | os.PathLike[str] | None = None,
    comm: Any = None,
    unsafe_seed: int | None = None,
) -> tuple[nn.Module, PrivateOptimizer, PrivateLoader]:
    """The same module, watched; the optimizer, whose step is private; a loader of Poisson batches.

    The loader's `batch_size` is the expected batch over all ranks: each record of its data set is
    in a batch with chance batch_size / records, and each rank draws from its own part. Either give
    `noise_multiplier`, or `target_epsilon` with `target_delta` and `epochs`, for which it is found.
    With `max_physical_batch_size` a batch comes in parts of at most so many samples, and
    `optimizer.step()` acts on the last. `comm` defaults to `dpcomm.init()`.

    `clipping` bounds a record's gradient by `max_grad_norm`: "flat" as a whole; "per_layer" each
    layer's part by an equal share; "automatic" by scaling it; "adaptive" by a norm, at first that
    one, which follows the `target_unclipped_quantile` of the gradients' norms (see
    `dpcomm.privacy.clipping.Adaptive`; `unclipped_num_std` is a twentieth of the batch if not
    given). Of a batch of more than `truncated_batch_size` records a random so many are taken. ε
    counts all of it; `optimizer.plan.explain()` says what it means.

    The loss must be a mean (or sum, see `loss_reduction`) of terms of one sample each; what it adds
    on parameters alone, as weight decay may, is ignored: give that to the optimizer.

    ε is told by `optimizer.get_epsilon(delta)`. It is counted in memory, and with a `ledger` in
    that file, before each update is released: what it held before counts too. Collective. Raises
    UsageError for a module, loader or optimizer that cannot be made private, saying what to change,
    and MismatchError where the ranks' records or settings differ.
    """
    if comm is None:
        from dpcomm.launch import init

        comm = init()
    loader = PrivateLoader(
        comm, data_loader, max_physical_batch_size, truncated_batch_size, unsafe_seed
    )
    if (noise_multiplier is None) == (target_epsilon is None):
        raise UsageError("give either noise_multiplier or target_epsilon")
    if noise_multiplier is None:
        if target_epsilon is None or target_delta is None or epochs is None:
            raise UsageError("target_epsilon needs target_delta and epochs too")
        noise_multiplier = accounting.noise_multiplier(
            target_epsilon, loader.sample_rate, epochs * len(loader), target_delta, accountant,
            truncated_batch_size=truncated_batch_size, records=loader.records,
        )  # fmt: skip
    adaptive = Adaptive(
        loader.expected_batch / 20 if unclipped_num_std is None else unclipped_num_std,
        target_unclipped_quantile,
        clipbound_learning_rate,
    )
    plan = Plan(
        records=loader.records,
        sample_rate=loader.sample_rate,
        steps=(1 if epochs is None else epochs) * len(loader),
        clip_norm=max_grad_norm,
        noise_multiplier=noise_multiplier,
        delta=default_delta(loader.records) if target_delta is None else target_delta,
        clipping=clipping,
        adaptive=adaptive if clipping == "adaptive" else None,
        truncated_batch_size=truncated_batch_size,
        noise=SECURE if unsafe_seed is None else UNSAFE,
        accountant=accountant,
    )
    parameter_count = sum(p.numel() for p in module.parameters() if p.requires_grad)
    shared = {"parameters": parameter_count, "unsafe_seed": unsafe_seed}
    check_same(plan.to_dict() | shared, comm)
    held = {p for group in optimizer.param_groups for p in group["params"]}
    if held != {p for p in module.parameters() if p.requires_grad}:
        raise UsageError(
            "the optimizer's parameters are not the module's trainable ones: what it updates "
            "beyond them would not be private; make it of module.parameters()"
        )
    parameters = FlatParameters(module, lambda size: comm.empty(size, torch.float32))
    comm.broadcast(parameters.values.detach())
    rule = plan.rule(parameters.layers)
    hooks = SampleHooks(module, parameters, rule, loss_reduction)
    step = PrivateStep(
        comm,
        parameters.size,
        rule,
        noise_multiplier,
        loader.expected_batch,
        adaptive=plan.adaptive,
        unsafe_seed=unsafe_seed,
    )
    private = PrivateOptimizer(optimizer, parameters, hooks, step, loader, plan)
    if ledger is not None:
        private.keep(ledger)
    if comm.rank == 0 and logger.isEnabledFor(logging.INFO):
        logger.info("%s", plan.explain())
    module.register_forward_pre_hook(private.begin_pass)
    return module, private, loader


class PrivateOptimizer:
    """The user's optimizer, fed with noisy means. What it does not define, the other does."""

    def __init__(
        self,
        original: torch.optim.Optimizer,
        parameters: FlatParameters,
        hooks: SampleHooks,
        step: PrivateStep,
        loader: PrivateLoader,
        plan: Plan,
    ) -> None:
        self.original, self.plan = original, plan
        self._parameters, self._hooks, self._private_step = parameters, hooks, step
        self._loader = loader
        self._toll: Toll | None = None
        self._earlier: list[Steps | Release] = []  # what the ledger held
        self._unsafe = plan.noise == UNSAFE  # or some of what the ledger held
        self._sharded: ShardedOptimizer | None = None
        if (native := native_form(original)) is not None and not original.state:
            self._sharded = ShardedOptimizer(
                step, parameters.gradient, parameters.values.detach(), native
            )
        else:
            logger.info(
                "%s is left to torch, whole on every rank: SGD without dampening, Adam and AdamW, "
                "new and with one group of parameters, are sharded",
                type(original).__name__,
            )
        self._versions = self._count_versions()
        self._of = 0  # the batch that the samples on their way belong to
        self._part, self._part_size = 0, 0  # what of it they are
        self._added = 0  # the part that was added to the gradient last
        self._begun: int | None = None  # the batch that the gradient holds parts of
        self._stepped = 0  # the batch of the last step
        self._seen = Seen()  # of the samples in the gradient

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def keep(self, path: str | os.PathLike[str]) -> None:
        """Pays for steps in the ledger at `path` from here on. Collective."""
        step = self._private_step
        ledger, content = None, b""
        if step.comm.rank == 0:
            ledger = Ledger(path)
            held = {"spent": [asdict(spent) for spent in ledger.spent()], "unsafe": ledger.unsafe()}
            content = json.dumps(held).encode()
            ledger.launch(secrets.token_hex(8), self.plan, step.comm.size, step.key_hash)
        held = json.loads(shared_bytes(step.comm, content))
        self._unsafe = self._unsafe or held["unsafe"]
        for spent in held["spent"]:
            self._earlier.append(Steps(**spent) if "count" in spent else Release(**spent))
        self._toll = Toll(step.comm, ledger, self.plan)

    def begin_pass(self, module: nn.Module, args: Any) -> None:
        """Before each forward pass: what an earlier one left is added, not mixed with this one."""
        if module.training and torch.is_grad_enabled():
            self._gather()
            loader = self._loader
            if loader.parts != self._part:
                # A pass whose backward has yet to come would be mixed with this one's samples.
                self._hooks.forget()
            self._of, self._part, self._part_size = loader.drawn, loader.parts, loader.part_size

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops what was passed backward since the last step; parts of a batch already stepped on
        stay."""
        self._hooks.forget_passed()
        for parameter in self._parameters.all:
            parameter.grad = None

    def step(self) -> None:
        """Clips, sums over ranks, adds noise, updates: one private step for each batch drawn.

        Raises UsageError for a second step on a batch, and for one step on two: a record in both
        would move the sum by twice the clip norm.
        """
        if self._loader.drawn == self._stepped:
            raise UsageError("no batch was drawn since the last step: take batches from the loader")
        self._gather()
        if not self._loader.last_part:
            return
        if self._begun is None:
            self._parameters.gradient.zero_()  # an empty batch
        self._begun, self._stepped = None, self._loader.drawn
        if self._toll:
            self._toll.pay()
        if self._sharded is None:
            self._private_step(self._parameters.gradient)
            for parameter in self._parameters.all:
                parameter.grad = self._parameters.gradient_of(parameter)
            self.original.step()
        else:
            self._update(self._sharded)
        self._private_step.adapt(self._seen)
        self._hooks.rule, self._seen = self._private_step.rule, Seen()
        # Backward would add to what lies in .grad, and that is the flat gradient.
        for parameter in self._parameters.all:
            parameter.grad = None

    def _update(self, sharded: ShardedOptimizer) -> None:
        native = native_form(self.original)  # its numbers as a schedule left them
        if native is None:
            raise UsageError(
                "the optimizer's settings changed to some that cannot be sharded: set them before "
                "make_private"
            )
        sharded.optimizer = native
        self._adopt_changes(sharded)
        sharded()
        self.original._opt_called = True  # type: ignore[attr-defined]  # torch's schedulers look

    def _adopt_changes(self, sharded: ShardedOptimizer) -> None:
        """Before the shards' own parameters are handed out: a checkpoint was loaded, say."""
        if (versions := self._count_versions()) != self._versions:
            sharded.adopt()
            self._versions = versions

    def _count_versions(self) -> int:
        """Changes whenever torch, and not our own update, writes parameters."""
        return sum(parameter._version for parameter in self._parameters.all)

    def state_dict(self) -> dict[str, Any]:
        """As torch's of the user's optimizer, the state of all ranks. Collective."""
        saved = self.original.state_dict()
        if self.plan.adaptive:
            saved["clip_norm"] = self._hooks.rule.norms[0]
        if self._sharded is None or self._sharded.count == 0:
            return saved
        self._adopt_changes(self._sharded)
        ours = self._sharded.state_dict()
        count = torch.tensor(float(ours.pop("count")))
        views = {n: self._parameters.views(torch.from_numpy(flat)) for n, flat in ours.items()}
        (group,) = self.original.param_groups
        saved["state"] = {
            index: {"step": count} | {name: view[p] for name, view in views.items()}
            for index, p in enumerate(group["params"])
        }
        return saved

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """What `state_dict` gave, on any number of ranks. Collective."""
        if self.plan.adaptive:
            self._hooks.rule = self._private_step.rule = ClipRule((saved["clip_norm"],))
        if self._sharded is None or not saved["state"]:
            return self.original.load_state_dict(saved)
        self._adopt_changes(self._sharded)
        self.original.load_state_dict(saved | {"state": {}})
        (group,) = self.original.param_groups
        ours: dict[str, Any] = {"count": saved["state"][0]["step"]}
        for name in native_form(self.original).states:  # type: ignore[union-attr]
            flat = torch.empty(self._parameters.size)
            for index, p in enumerate(group["params"]):
                self._parameters.views(flat)[p].copy_(saved["state"][index][name])
            ours[name] = flat
        return self._sharded.load_state_dict(ours)

    def get_epsilon(self, delta: float) -> float:
        """ε of the steps taken so far, and of what the ledger, if there is one, held before;
        infinite where a seed gave some of the noise."""
        if self._unsafe:
            return math.inf
        spent = [*self._earlier, self.plan.spending(self._private_step.steps)]
        return accounting.composed_epsilon(spent, delta, self.plan.accountant)

    def _gather(self) -> None:
        samples = self._hooks.waiting()
        if not samples:
            return
        fresh = self._begun is None
        if not fresh and self._begun != self._of:
            raise UsageError(
                "two batches were passed backward for one step: a record in both would count "
                "twice; step after each, and to hold less at once give max_physical_batch_size"
            )
        if self._added == self._part:
            raise UsageError(
                "a batch was passed backward twice for one step: its records would count twice; "
                "add the losses and pass their sum backward, once"
            )
        if samples > self._part_size:
            raise UsageError(
                f"{samples} samples were passed backward, of a batch of {self._part_size}: a "
                "record that is there several times would count as often; pass what the loader "
                "gives, each sample once"
            )
        self._added = self._part
        added = self._hooks.add_up(fresh)
        self._begun = self._of
        if added and self.plan.adaptive:
            self._seen += seen(added.norms, added.nonfinite, self._hooks.rule)


def native_form(optimizer: torch.optim.Optimizer) -> Sgd | Adam | None:
    """The same optimizer as one of ours, with its present numbers; None if it is none of them."""
    kind, groups = type(optimizer), optimizer.param_groups
    names = {
        torch.optim.SGD: "dampening",
        torch.optim.Adam: "amsgrad",
        torch.optim.AdamW: "amsgrad",
    }
    if kind not in names or len(groups) != 1:
        return None
    group = groups[0]
    if group[names[kind]] or group["maximize"] or group["differentiable"]:
        return None
    lr, decay = float(group["lr"]), group["weight_decay"]
    if kind is torch.optim.SGD:
        return Sgd(lr, group["momentum"], decay, group["nesterov"])
    decoupled = kind is torch.optim.AdamW or group.get("decoupled_weight_decay", False)
    return Adam(lr, group["betas"], group["eps"], decay, decoupled)
