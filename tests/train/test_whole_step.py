"""The private step, whole: each rank's clipped sum, combined, is the loop over single samples."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from groups import results, run_threads

from dpcomm import UsageError
from dpcomm.data import shards
from dpcomm.privacy.clipping import ClipRule
from dpcomm.privacy.optimizer import Sgd, ShardedOptimizer
from dpcomm.privacy.sampling import poisson_sample, share
from dpcomm.privacy.step import PrivateStep
from dpcomm.torch import FlatParameters
from dpcomm.train.model import losses, mlp
from dpcomm.train.step import Batches, training_step

CLIP, RATE, KEY = 0.95, 0.1, bytes(32)


@pytest.fixture(scope="module")
def data(tiny):
    return shards.load(tiny)


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    return mlp(data.features, len(data.classes), (8,))


@pytest.fixture(scope="module")
def microbatches(data, model):
    """The mean of the clipped gradients, one sample at a time, in float64."""
    model = copy.deepcopy(model).double()
    total, norms = 0.0, []
    for row in data.gather(poisson_sample(KEY, 0, RATE, 0, data.records)):
        sample, label = torch.from_numpy(row[None, :-1]).double(), torch.from_numpy(row[-1:])
        loss = losses(model(sample), label.double()).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        gradient = torch.cat([g.reshape(-1) for g in gradients])
        norms.append(float(gradient.norm()))
        total = total + gradient * min(1.0, CLIP / norms[-1])
    assert 0.2 < np.mean(np.array(norms) > CLIP) < 0.8, "some are clipped, others are not"
    return (total / (RATE * data.records)).numpy()


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("path", ["native", "torch"])
def test_without_noise_it_equals_the_microbatch_loop(
    data, model, microbatches, path, size, monkeypatch
):
    if path == "torch":
        monkeypatch.setattr("dpcomm.train.step.linear_chain", lambda module: None)

    def body(comm):
        own = copy.deepcopy(model)
        parameters = FlatParameters(own)
        step = PrivateStep(comm, parameters.size, CLIP, 0.0, RATE * data.records, no_noise=True)
        # An update so large that the parameters' rounding does not count.
        before = parameters.values.detach().clone()
        update = ShardedOptimizer(
            step, parameters.gradient, parameters.values.detach(), Sgd(lr=2.0**20)
        )
        batches = Batches(data, KEY, RATE, *share(data.records, comm.rank, comm.size))
        training_step(own, parameters, batches, True, update, threads=1)(0)
        return ((before.double() - parameters.values.detach()) / 2**20).numpy()

    for mean in results(run_threads(size, body)):
        error = np.linalg.norm(mean - microbatches) / np.linalg.norm(microbatches)
        assert error < 1e-6


def test_a_batch_that_failed_is_drawn_anew(data, model):
    def body(comm):
        own = copy.deepcopy(model)
        parameters = FlatParameters(own)
        step = PrivateStep(comm, parameters.size, CLIP, 0.0, RATE * data.records, no_noise=True)
        update = ShardedOptimizer(
            step, parameters.gradient, parameters.values.detach(), Sgd(lr=0.1)
        )
        native = training_step(
            own, parameters, Batches(data, KEY, RATE, 0, data.records), True, update, threads=1
        )
        before = native(0).samples
        rule, step.rule = step.rule, ClipRule((1.0, 1.0, 1.0))
        with pytest.raises(UsageError, match="3 clip norms for 2 layers"):
            native(1)
        step.rule = rule
        return [before, native(1).samples]

    [seen] = results(run_threads(1, body))
    assert seen == [len(poisson_sample(KEY, batch, RATE, 0, data.records)) for batch in (0, 1)]
