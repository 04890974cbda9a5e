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

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from dpcomm import accounting
from dpcomm._core import UsageError
from dpcomm.hooks import SampleHooks
from dpcomm.privacy.optimizer import Adam, Sgd, ShardedOptimizer
from dpcomm.privacy.plan import check_same
from dpcomm.privacy.sampling import poisson_sample
from dpcomm.privacy.step import PrivateStep, shared_key
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
    accountant: str = "pld",
    comm: Any = None,
    unsafe_seed: int | None = None,
) -> tuple[nn.Module, PrivateOptimizer, PrivateLoader]:
    """The same module, watched; the optimizer, whose step is private; a loader of Poisson batches.

    The loader's `batch_size` is the expected batch over all ranks: each record of its data set is
    in a batch with chance batch_size / records, and each rank draws from its own part. Either give
    `noise_multiplier`, or `target_epsilon` with `target_delta` and `epochs`, for which it is found.
    With `max_physical_batch_size` a batch comes in parts of at most so many samples, and
    `optimizer.step()` acts on the last. `comm` defaults to `dpcomm.init()`.

    The loss must be a mean (or sum, see `loss_reduction`) of terms of one sample each; what it adds
    on parameters alone, as weight decay may, is ignored: give that to the optimizer.

    ε is counted in memory, by `optimizer.get_epsilon(delta)`; no ledger is kept. Collective. Raises
    UsageError for a module, loader or optimizer that cannot be made private, saying what to change,
    and MismatchError where the ranks' records or settings differ.
    """
    if comm is None:
        from dpcomm.launch import init

        comm = init()
    loader = PrivateLoader(comm, data_loader, max_physical_batch_size, unsafe_seed)
    if (noise_multiplier is None) == (target_epsilon is None):
        raise UsageError("give either noise_multiplier or target_epsilon")
    if noise_multiplier is None:
        if target_epsilon is None or target_delta is None or epochs is None:
            raise UsageError("target_epsilon needs target_delta and epochs too")
        noise_multiplier = accounting.noise_multiplier(
            target_epsilon, loader.sample_rate, epochs * len(loader), target_delta, accountant
        )
    shared = {
        "records": loader.records,
        "batch_size": loader.expected_batch,
        "max_grad_norm": max_grad_norm,
        "noise_multiplier": noise_multiplier,
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "unsafe_seed": unsafe_seed,
    }
    check_same(shared, comm)
    held = {p for group in optimizer.param_groups for p in group["params"]}
    if held != {p for p in module.parameters() if p.requires_grad}:
        raise UsageError(
            "the optimizer's parameters are not the module's trainable ones: what it updates "
            "beyond them would not be private; make it of module.parameters()"
        )
    parameters = FlatParameters(module, lambda size: comm.empty(size, torch.float32))
    comm.broadcast(parameters.values.detach())
    hooks = SampleHooks(module, parameters, max_grad_norm, loss_reduction)
    step = PrivateStep(
        comm,
        parameters.size,
        max_grad_norm,
        noise_multiplier,
        loader.expected_batch,
        unsafe_seed=unsafe_seed,
    )
    private = PrivateOptimizer(optimizer, parameters, hooks, step, loader, accountant)
    module.register_forward_pre_hook(private.begin_pass)
    return module, private, loader


class PrivateLoader:
    """Poisson batches of a data loader's data set; `len` is the steps of an epoch.

    A batch may be empty, and still is one: pass it on like any other.
    """

    def __init__(
        self, comm: Any, loader: DataLoader, most: int | None, unsafe_seed: int | None
    ) -> None:
        if loader.batch_size is None or not hasattr(loader.dataset, "__len__"):
            raise UsageError(
                "the loader has no batch_size, or its data set no length: Poisson sampling needs "
                "both; give a DataLoader(dataset, batch_size=…) of a map-style data set"
            )
        self.records = len(loader.dataset)
        if not 0 < loader.batch_size <= self.records:
            raise UsageError(f"batch_size={loader.batch_size} of {self.records} records")
        if most is not None and most < 1:
            raise UsageError(f"max_physical_batch_size={most}: give at least 1")
        self.expected_batch = float(loader.batch_size)
        self.sample_rate = loader.batch_size / self.records
        self.drawn = 0  # batches
        self.parts = 0  # of all batches, handed out
        self.part_size = 0  # samples in the last of them
        self.last_part = True  # of the batch that was handed out last
        self._comm, self._most = comm, most
        self._key = shared_key(comm, unsafe_seed)
        self._tensors = _tensors_of(loader)
        self._loader = DataLoader(
            loader.dataset,
            batch_sampler=_Given(self._parts),
            collate_fn=_with_empty(loader.collate_fn, loader.dataset),
            num_workers=0,
            pin_memory=loader.pin_memory,
        )

    def __len__(self) -> int:
        return max(1, round(1 / self.sample_rate))

    def __iter__(self) -> Iterator[Any]:
        if self._tensors is None:
            return iter(self._loader)
        return map(self.load, self._parts())

    def load(self, ids: np.ndarray) -> list[Tensor]:
        """The records `ids` of a TensorDataset, without a Python call for each."""
        assert self._tensors is not None
        chosen = torch.from_numpy(ids)
        return [tensor.index_select(0, chosen) for tensor in self._tensors]

    def _parts(self) -> Iterator[np.ndarray]:
        rank, size = self._comm.rank, self._comm.size
        begin, end = self.records * rank // size, self.records * (rank + 1) // size
        for _ in range(len(self)):
            ids = poisson_sample(self._key, self.drawn, self.sample_rate, begin, end)
            self.drawn += 1
            most = self._most or max(1, len(ids))
            parts = [ids[i : i + most] for i in range(0, len(ids), most)] or [ids]
            for index, part in enumerate(parts, 1):
                self.last_part = index == len(parts)
                self.parts, self.part_size = self.parts + 1, len(part)
                yield part


class PrivateOptimizer:
    """The user's optimizer, fed with noisy means. What it does not define, the other does."""

    def __init__(
        self,
        original: torch.optim.Optimizer,
        parameters: FlatParameters,
        hooks: SampleHooks,
        step: PrivateStep,
        loader: PrivateLoader,
        accountant: str,
    ) -> None:
        self.original = original
        self._parameters, self._hooks, self._private_step = parameters, hooks, step
        self._loader, self._accountant = loader, accountant
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

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

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
        self._hooks.forget()
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
        if self._sharded is None:
            self._private_step(self._parameters.gradient)
            for parameter in self._parameters.all:
                parameter.grad = self._parameters.gradient_of(parameter)
            self.original.step()
        else:
            self._update(self._sharded)
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
        if (versions := self._count_versions()) != self._versions:
            sharded.adopt()  # a checkpoint was loaded, say
            self._versions = versions
        sharded()
        self.original._opt_called = True  # type: ignore[attr-defined]  # torch's schedulers look

    def _count_versions(self) -> int:
        """Changes whenever torch, and not our own update, writes parameters."""
        return sum(parameter._version for parameter in self._parameters.all)

    def state_dict(self) -> dict[str, Any]:
        """As torch's of the user's optimizer, the state of all ranks. Collective."""
        saved = self.original.state_dict()
        if self._sharded is None or self._sharded.count == 0:
            return saved
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
        if self._sharded is None or not saved["state"]:
            return self.original.load_state_dict(saved)
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
        """ε of the steps taken so far."""
        step = self._private_step
        return accounting.epsilon(
            self._loader.sample_rate, step.noise_multiplier, step.steps, delta, self._accountant
        )

    def _gather(self) -> None:
        if not self._hooks.waiting():
            return
        fresh = self._begun is None
        if fresh:
            self._begun = self._of
        if self._begun != self._of:
            raise UsageError(
                "two batches were passed backward for one step: a record in both would count "
                "twice; step after each, and to hold less at once give max_physical_batch_size"
            )
        if self._added == self._part:
            raise UsageError(
                "a batch was passed backward twice for one step: its records would count twice; "
                "add the losses and pass their sum backward, once"
            )
        self._added = self._part
        added = self._hooks.add_up(fresh)
        if added and len(added.norms) > self._part_size:
            raise UsageError(
                f"{len(added.norms)} samples were passed backward, of a batch of "
                f"{self._part_size}: a record that is there several times would count as often; "
                "pass what the loader gives, each sample once"
            )


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


class _Given:
    """A batch sampler of what a function yields."""

    def __init__(self, parts: Callable[[], Iterator[np.ndarray]]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[list[int]]:
        return (part.tolist() for part in self._parts())


def _tensors_of(loader: DataLoader) -> tuple[Tensor, ...] | None:
    """What a TensorDataset in an ordinary loader holds: its batches can be gathered by index."""
    plain = type(loader.dataset) is TensorDataset and loader.collate_fn is default_collate
    if not plain or loader.pin_memory:
        return None
    return loader.dataset.tensors  # type: ignore[attr-defined]


def _with_empty(collate: Callable[[list[Any]], Any], dataset: Any) -> Callable[[list[Any]], Any]:
    """Collates no samples too: as one, of which nothing is kept."""

    def nothing_of(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value[:0]
        if isinstance(value, dict):
            return {name: nothing_of(part) for name, part in value.items()}
        return type(value)(nothing_of(part) for part in value)

    return lambda samples: collate(samples) if samples else nothing_of(collate([dataset[0]]))
