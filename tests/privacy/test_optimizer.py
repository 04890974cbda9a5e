"""The optimizer in the private step: torch's updates, one state over all ranks, the noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from groups import all_fail, results, run_threads
from scipy import stats

from dpcomm import MismatchError, PrivateStep, UsageError, _core
from dpcomm.privacy.optimizer import Adam, Sgd, ShardedOptimizer

COUNT = 10_007
OPTIMIZERS = {
    "sgd": (Sgd(0.1), torch.optim.SGD, {"lr": 0.1}),
    "momentum": (
        Sgd(0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
    ),
    "adam": (Adam(0.01), torch.optim.Adam, {"lr": 0.01}),
    "adamw": (
        Adam(0.01, weight_decay=0.1, decoupled_weight_decay=True),
        torch.optim.AdamW,
        {"lr": 0.01, "weight_decay": 0.1},
    ),
}


def sums(rank: int, step: int) -> np.ndarray:
    return np.random.default_rng([rank, step]).normal(size=COUNT).astype(np.float32)


class Job:
    """A rank's buffers and optimizer."""

    def __init__(self, comm, optimizer, algo=None, noise=0.0, registered=True):
        make = comm.empty if registered else lambda n: np.empty(n, np.float32)
        self.comm = comm
        self.gradient, self.parameters = make(COUNT), make(COUNT)
        self.parameters[:] = np.random.default_rng(9).normal(size=COUNT)
        private = PrivateStep(
            comm, COUNT, 2.0, noise, 50.0, no_noise=noise == 0, algo=algo, unsafe_seed=1
        )
        self.update = ShardedOptimizer(private, self.gradient, self.parameters, optimizer)

    def steps(self, begin, end):
        for step in range(begin, end):
            self.gradient[:] = sums(self.comm.rank, step)
            self.update()
        return self.parameters.copy()


def of_all_ranks(size, body):
    first, *others = results(run_threads(size, body))
    for other in others:
        np.testing.assert_array_equal(first.view(np.uint32), other.view(np.uint32))
    return first


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_noise_it_is_torchs_optimizer_on_the_mean(name, size):
    ours, theirs, settings = OPTIMIZERS[name]
    expected = torch.nn.Parameter(torch.from_numpy(np.random.default_rng(9).normal(size=COUNT)))
    optimizer = theirs([expected], **settings)
    for step in range(4):
        mean = sum(sums(rank, step).astype(np.float64) for rank in range(size)) / 50
        expected.grad = torch.from_numpy(mean)
        optimizer.step()
    updated = of_all_ranks(size, lambda comm: Job(comm, ours).steps(0, 4))
    # Adam divides by the root of what is nearly 0 for some elements.
    np.testing.assert_allclose(updated, expected.detach().numpy(), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("algo", [None, *_core.algorithms()])
def test_every_schedule_keeps_the_state_where_it_belongs(algo, registered):
    def body(comm):
        return Job(comm, OPTIMIZERS["adam"][0], algo, 1.5, registered).steps(0, 3)

    # Additions in another order; the noise has the same bits.
    alone = of_all_ranks(1, lambda comm: Job(comm, OPTIMIZERS["adam"][0], None, 1.5).steps(0, 0))
    spread = of_all_ranks(3, body)
    same = of_all_ranks(3, lambda comm: Job(comm, OPTIMIZERS["adam"][0], None, 1.5).steps(0, 3))
    assert not np.allclose(alone, spread, atol=1e-3)
    np.testing.assert_allclose(spread, same, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algo", _core.algorithms())
def test_a_later_tuning_moves_no_element_to_another_rank(algo):
    def body(comm, tuned):
        job = Job(comm, OPTIMIZERS["adam"][0], noise=1.5)
        job.steps(0, 1)
        if tuned:
            comm.core.tune("all_reduce", "float32", [(1 << 30, algo)])
        return job.steps(1, 3)

    np.testing.assert_array_equal(
        of_all_ranks(3, lambda comm: body(comm, True)),
        of_all_ranks(3, lambda comm: body(comm, False)),
    )


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_applied_update_has_the_noise_that_was_asked_for(size):
    def body(comm):
        job = Job(comm, Sgd(2.0**20), noise=1.5)
        before = job.parameters.astype(np.float64)
        moved = []
        for _ in range(100):
            job.gradient[:] = 0
            job.update()
            moved.append((before - job.parameters) / 2**20)
            before = job.parameters.astype(np.float64)
        return np.concatenate(moved).astype(np.float32)

    standard = of_all_ranks(size, body).astype(np.float64) / (1.5 * 2.0 / 50.0)
    assert stats.kstest(standard, "norm").pvalue > 0.01
    for wrong in (0.98, 1.02):  # see test_step.py on the level
        assert stats.kstest(standard * wrong, "norm").pvalue < 1e-6


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_goes_on_on_another_number_of_ranks(name):
    optimizer = OPTIMIZERS[name][0]

    def begin(comm):
        job = Job(comm, optimizer)
        return job.steps(0, 2), job.update.state_dict(), job.parameters.copy()

    begun = results(run_threads(3, begin))
    parameters, state, after = begun[0]
    np.testing.assert_array_equal(parameters, after)  # to ask for the state changes nothing
    for _, other, _ in begun[1:]:
        assert state.keys() == other.keys()
        assert all(np.array_equal(state[k], other[k]) for k in state)

    def go_on(comm):
        job = Job(comm, optimizer)
        job.parameters[:] = parameters
        job.update.adopt()
        job.update.load_state_dict(state)
        for step in range(2, 4):  # what three ranks gave, on the first two
            job.gradient[:] = sums(comm.rank, step) if comm.rank < 2 else 0
            if comm.rank == 0:
                job.gradient += sums(2, step)
            job.update()
        return job.parameters.copy()

    whole = of_all_ranks(3, lambda comm: Job(comm, optimizer).steps(0, 4))
    for size in (2, 8):
        resumed = of_all_ranks(size, go_on)
        np.testing.assert_allclose(resumed, whole, rtol=1e-5, atol=2e-5)


def test_a_schedule_changes_the_learning_rate():
    def body(comm):
        job = Job(comm, Sgd(0.1))
        first = job.steps(0, 1)
        job.update.optimizer.lr = 0.0
        assert np.array_equal(job.steps(1, 2), first)
        job.update.optimizer.lr = 0.1
        return job.steps(2, 3)

    assert not np.allclose(
        of_all_ranks(2, body), of_all_ranks(2, lambda c: Job(c, Sgd(0.1)).steps(0, 1))
    )


def test_what_does_not_fit_is_refused():
    def body(comm):
        job = Job(comm, Sgd(0.1))
        job.update.optimizer.momentum = 0.9
        with pytest.raises(UsageError, match="to or from 0 momentum"):
            job.update()
        with pytest.raises(ValueError, match="an optimizer that keeps"):
            job.update.load_state_dict({"count": 1, "exp_avg": np.zeros(COUNT, np.float32)})
        short = np.zeros(3, np.float32)
        with pytest.raises(UsageError, match="3 elements for a step of 10007"):
            ShardedOptimizer(job.update.step, short, job.parameters, Sgd(0.1))
        assert math.isfinite(job.parameters.sum())

    results(run_threads(1, body))


@pytest.mark.parametrize("algo", [None, "ring"])
def test_a_state_that_one_rank_alone_asks_for_is_an_error_on_every_rank(algo):
    def body(comm):
        job = Job(comm, Adam(0.01), algo)
        job.steps(0, 1)
        if comm.rank == 0:
            job.update.state_dict()
        job.steps(1, 9)

    all_fail(run_threads(2, body, 5), MismatchError, "epilogue gather", "epilogue update")
