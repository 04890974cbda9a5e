"""The sides of benchmarks/step.py: ways to take one training step, each with its own input."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

import dpcomm
from dpcomm.comm import Communicator
from dpcomm.privacy.mlp import Layer, Mlp, Records
from dpcomm.privacy.optimizer import NativeStep, Sgd, ShardedOptimizer
from dpcomm.privacy.sampling import poisson_sample, share
from dpcomm.privacy.step import PrivateStep, shared_key

MODELS = {"small": (40, 64, 32, 1), "wide": (40, 512, 512, 1)}
FEATURES = 40
CLIP_NORM, NOISE_MULTIPLIER, RATE = 1.0, 1.1, 0.1

Step = Callable[[], Any]


@dataclass(frozen=True)
class Side:
    """One way to train. `step` is the whole; each of `parts` is done alone what the step does too:
    sampler (a batch's ids) and loader (its rows)."""

    step: Step
    parts: dict[str, Step] = field(default_factory=dict)


class Data:
    """Records [N, 41], the label last, in a mapped file as preparation leaves them."""

    def __init__(self, path: str) -> None:
        self.rows = np.memmap(path, np.float32, "c").reshape(-1, FEATURES + 1).view(np.ndarray)
        self.tensor = torch.from_numpy(self.rows)
        self.records = len(self.rows)

    @staticmethod
    def write(path: str, records: int) -> None:
        rng = np.random.default_rng(0)
        truth = rng.standard_normal(FEATURES)
        with open(path, "wb") as file:
            for first in range(0, records, 1 << 16):
                rows = rng.standard_normal((min(1 << 16, records - first), 41), np.float32)
                rows[:, -1] = rows[:, :-1] @ truth > 0
                file.write(rows.tobytes())


def network(model: str) -> nn.Sequential:
    torch.manual_seed(0)
    pairs = itertools.pairwise(MODELS[model])
    parts = [part for a, b in pairs for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*parts[:-1])


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, RATE)


def gathered(data: Data, batch: int, train: Callable[[torch.Tensor, torch.Tensor], Any]) -> Side:
    """A step on a uniform sample, the cheapest input that torch has."""

    def sample() -> torch.Tensor:
        return torch.randint(data.records, (batch,))

    def load(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = data.tensor[ids]
        return rows[:, :-1], rows[:, -1:]

    ids = sample()
    return Side(lambda: train(*load(sample())), {"sampler": sample, "loader": lambda: load(ids)})


def eager(model: str, batch: int, data: Data, wrap: Any = None) -> Side:
    """Plain SGD; `wrap` is DistributedDataParallel."""
    net, loss = network(model), nn.BCEWithLogitsLoss()
    net = wrap(net) if wrap else net
    optimizer = sgd(net.parameters())

    def train(x: torch.Tensor, t: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss(net(x), t).backward()
        optimizer.step()

    return gathered(data, batch, train)


def compiled(model: str, batch: int, data: Data) -> Side:
    net, loss = network(model), nn.BCEWithLogitsLoss()
    optimizer = sgd(net.parameters())

    @torch.compile
    def train(x: torch.Tensor, t: torch.Tensor) -> None:
        loss(net(x), t).backward()
        optimizer.step()
        optimizer.zero_grad()

    return gathered(data, batch, train)


def update(parameters: list[nn.Parameter], sums: list[torch.Tensor], batch: int) -> None:
    """Noise and plain SGD in torch, for the sides that have no optimizer of their own."""
    with torch.no_grad():
        for parameter, total in zip(parameters, sums, strict=True):
            total += torch.normal(0.0, CLIP_NORM * NOISE_MULTIPLIER, total.shape)
            parameter -= RATE / batch * total.view_as(parameter)


def vmap(model: str, batch: int, data: Data) -> Side:
    """Per-sample gradients by torch.func."""
    net, loss = network(model), nn.BCEWithLogitsLoss()
    parameters = dict(net.named_parameters())

    def of_one(values: dict[str, torch.Tensor], x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return loss(torch.func.functional_call(net, values, (x[None],)), t[None])

    per_sample = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0, 0))

    def train(x: torch.Tensor, t: torch.Tensor) -> None:
        values = {name: parameter.detach() for name, parameter in parameters.items()}
        gradients = [g.flatten(1) for g in per_sample(values, x, t).values()]
        norms = torch.stack([g.square().sum(1) for g in gradients]).sum(0).sqrt()
        factors = (CLIP_NORM / norms).clamp(max=1.0)
        update(list(parameters.values()), [factors @ g for g in gradients], batch)

    return gathered(data, batch, train)


def by_hand(model: str, batch: int, data: Data) -> Side:
    """Exact clipping for this one chain: norms from activations and output gradients, and one
    weighted product a layer."""
    net = network(model)
    layers = [part for part in net if isinstance(part, nn.Linear)]
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]

    @torch.no_grad()
    def train(x: torch.Tensor, t: torch.Tensor) -> None:
        inputs = [x]
        for layer in layers[:-1]:
            inputs.append(torch.addmm(layer.bias, inputs[-1], layer.weight.t()).relu_())
        logit = torch.addmm(layers[-1].bias, inputs[-1], layers[-1].weight.t())
        gradients = [torch.sigmoid(logit) - t]
        for layer, y in zip(layers[:0:-1], inputs[:0:-1], strict=True):
            gradients.append((gradients[-1] @ layer.weight) * (y > 0))
        gradients.reverse()
        squares = torch.zeros(len(x))
        for a, g in zip(inputs, gradients, strict=True):
            squares += (a.square().sum(1) + 1) * g.square().sum(1)
        factors = (CLIP_NORM / squares.sqrt()).clamp(max=1.0)[:, None]
        sums = []
        for a, g in zip(inputs, gradients, strict=True):
            scaled = factors * g
            sums += [scaled.t() @ a, scaled.sum(0)]
        update(parameters, sums, batch)

    return gathered(data, batch, train)


def opacus(model: str, batch: int, data: Data, ghost: bool) -> Side:
    from opacus import optimizers
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    loss: Any = nn.BCEWithLogitsLoss()
    net = network(model)
    options = {
        "noise_multiplier": NOISE_MULTIPLIER,
        "max_grad_norm": CLIP_NORM,
        "expected_batch_size": batch,
    }
    wrapped: Any
    optimizer: Any
    if ghost:
        wrapped = GradSampleModuleFastGradientClipping(
            net, max_grad_norm=CLIP_NORM, use_ghost_clipping=True
        )
        optimizer = optimizers.DPOptimizerFastGradientClipping(sgd(net.parameters()), **options)
        loss = DPLossFastGradientClipping(wrapped, optimizer, loss)
    else:
        wrapped = GradSampleModule(net)
        optimizer = optimizers.DPOptimizer(sgd(net.parameters()), **options)

    def train(x: torch.Tensor, t: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss(wrapped(x), t).backward()
        optimizer.step()

    return gathered(data, batch, train)


def alone() -> Communicator:
    """A communicator of this process, whatever started it."""
    return Communicator(dpcomm._core.Communicator(dpcomm._core.local_transports(1, 60)[0]))


def native(
    model: str, batch: int, data: Data, threads: int, private: bool, comm: Any = None
) -> Side:
    """Ours: the whole step as one call. `batch` is the expected one over all ranks."""
    comm = comm or alone()
    sizes = MODELS[model]
    shapes = list(itertools.pairwise(sizes))
    layers = [Layer(a, b, "relu" if b != sizes[-1] else "none") for a, b in shapes]
    mlp = Mlp(layers, "binary_cross_entropy", threads=threads)
    flat = nn.utils.parameters_to_vector(network(model).parameters()).detach()
    parameters = comm.empty(mlp.parameters)
    parameters[:] = flat.numpy()
    gradient = comm.empty(mlp.parameters)
    noise = {"noise_multiplier": NOISE_MULTIPLIER} if private else {"noise_multiplier": 0.0}
    step = PrivateStep(
        comm, mlp.parameters, CLIP_NORM, **noise, expected_batch=batch, no_noise=not private,
        threads=threads,
    )  # fmt: skip
    optimizer = ShardedOptimizer(step, gradient, parameters, Sgd(RATE))
    records = Records(data.rows[:, :-1], data.rows[:, -1])
    begin, end = share(data.records, comm.rank, comm.size)
    key, rate, numbers = shared_key(comm), batch / data.records, itertools.count()
    whole = NativeStep(optimizer, mlp, records, key, rate, begin, end, private)
    parts: dict[str, Step] = {
        "sampler": lambda: poisson_sample(key, 0, rate, begin, end),
        "communication": partial(comm.all_reduce, gradient, out=parameters.copy()),
    }
    return Side(lambda: whole(next(numbers)), parts if comm.size == 1 else {})


def general(model: str, batch: int, data: Data) -> Side:
    """Ours for any module: `make_private`, then an ordinary backward pass."""
    net, loss = network(model), nn.BCEWithLogitsLoss()
    x, t = data.tensor[:, :-1], data.tensor[:, -1:]
    plain_loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, t), batch_size=batch
    )
    module, optimizer, loader = dpcomm.make_private(
        module=net,
        optimizer=sgd(net.parameters()),
        data_loader=plain_loader,
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP_NORM,
        comm=alone(),
    )
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def train() -> None:
        inputs, targets = next(batches)
        optimizer.zero_grad()
        loss(module(inputs), targets).backward()
        optimizer.step()

    rate, ids = loader.sample_rate, np.arange(batch)
    return Side(
        train,
        {
            "sampler": lambda: poisson_sample(bytes(32), 0, rate, 0, data.records),
            "loader": lambda: loader.load(ids),
        },
    )
