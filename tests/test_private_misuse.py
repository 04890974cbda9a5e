"""make_private where a training loop does something else than the examples: what is the same in
torch gives the same, and what would cost more than ε says is refused, or counted, and stays so."""

from __future__ import annotations

import logging
import math
import os

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler, TensorDataset

import dpcomm
from dpcomm import UsageError, launch
from dpcomm.privacy.clipping import ClipRule
from dpcomm.privacy.ledger import Ledger

RECORDS = 12


def private(module, records=RECORDS, data=None, **settings):
    """All records in each batch, and next to no noise."""
    torch.manual_seed(0)
    data = data or TensorDataset(torch.randn(records, 4), torch.randn(records, 1))
    options = {"noise_multiplier": 1e-9, "max_grad_norm": 1.0, "comm": launch.alone()} | settings
    return dpcomm.make_private(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), 1.0),
        data_loader=DataLoader(data, batch_size=len(data)),
        **options,
    )


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))


def moved(module, before) -> float:
    after = nn.utils.parameters_to_vector(module.parameters())
    return float((after - before).detach().norm())


def weights(module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


@pytest.mark.parametrize("most", [None, 5])
@pytest.mark.parametrize("late", [False, True])
def test_zero_grad_may_stand_between_forward_and_backward(late, most):
    expected = None
    for is_late in (False, late):
        module, optimizer, loader = private(network(), max_physical_batch_size=most)
        for x, y in loader:
            if not is_late:
                optimizer.zero_grad()
            loss = (module(x) - y).square().mean()
            if is_late:
                optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found = weights(module)
        assert (found - weights(network())).norm() > 0.05
        expected = found if expected is None else expected
    torch.testing.assert_close(found, expected)


def test_zero_grad_drops_what_was_passed_backward():
    module, optimizer, loader = private(network())
    before = weights(module)
    for x, y in loader:
        (module(x) - y).square().mean().backward()
        optimizer.zero_grad()
        optimizer.step()
    assert moved(module, before) < 1e-6


def test_a_refused_batch_is_never_released():
    """One record, three times in its batch, and again in the next step."""
    module, optimizer, loader = private(nn.Linear(4, 1, bias=False), records=1)
    before = weights(module)
    for x, y in loader:
        (module(torch.cat([x, x, x])) - y).square().mean().backward()
        for _ in range(3):
            with pytest.raises(UsageError, match="3 samples were passed backward, of a batch of 1"):
                optimizer.step()
        optimizer.zero_grad()
        optimizer.step()
    assert moved(module, before) < 1e-6


def test_a_refusal_does_not_release_what_the_step_before_left():
    module, optimizer, loader = private(nn.Linear(4, 1), records=3)
    for x, y in loader:
        (module(x) - y).square().mean().backward()
        optimizer.step()
    before = weights(module)
    for x, y in loader:
        (module(torch.cat([x, x])) - torch.cat([y, y])).square().mean().backward()
        with pytest.raises(UsageError, match="6 samples"):
            optimizer.step()
        optimizer.zero_grad()
        optimizer.step()
    assert moved(module, before) < 1e-6


@pytest.mark.parametrize("layers", [1, 2])
def test_autocast_trains_and_keeps_the_bound(layers):
    module = network() if layers == 2 else nn.Linear(4, 1)
    module, optimizer, loader = private(module, max_grad_norm=1e-2)
    before = weights(module)
    for x, y in loader:
        with torch.autocast("cpu", torch.bfloat16):
            loss = (module(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    # The mean over the batch of what each of the samples adds, all longer than the norm.
    assert 1e-3 < moved(module, before) < 1e-2 * (1 + 1e-6)


def test_a_part_that_is_added_under_autocast_keeps_the_bound():
    """The next part's forward pass, within autocast, is what adds up the part before it."""
    for allow in (lambda: torch.autocast("cpu", torch.bfloat16), medium_precision):
        worst = 0.0
        for seed in range(50):
            torch.manual_seed(seed)
            a, g = torch.randn(1, 4, 64), torch.randn(1, 4, 64)
            with allow():
                clipped = dpcomm.clip_linear(a, g, 1.0)
            assert clipped.sums[0][0].dtype == torch.float32
            total = sum(one.double().square().sum() for one in clipped.sums[0])
            worst = max(worst, float(total.sqrt()))
        assert 1 - 1e-5 < worst <= 1


class medium_precision:  # noqa: N801  # a context manager
    def __enter__(self):
        torch.set_float32_matmul_precision("medium")

    def __exit__(self, *_):
        assert torch.get_float32_matmul_precision() == "medium"
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("positions", [1, 2])
def test_automatic_clipping_of_a_long_gradient_without_input_adds_nothing(positions):
    """Factor times gradient overflows, and infinity times nothing is no number."""
    a, g = torch.zeros(2, positions, 8), torch.ones(2, positions, 4)
    g[0] *= 1e37
    a[1] = 1
    clipped = dpcomm.clip_linear(a.squeeze(1), g.squeeze(1), ClipRule((1.0,), 0.01), bias=False)
    assert clipped.nonfinite == 0
    assert 0.9 < float(clipped.sums[0][0].double().norm()) <= 1


class Functional(nn.Module):
    """An output layer that shares the embedding's weight, but not as a layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 4)

    def forward(self, x, tied=True):
        h = self.head(self.embedding(x).mean(1))
        return nn.functional.linear(h, self.embedding.weight) if tied else h


@pytest.mark.parametrize("tied", [True, False])
def test_a_weight_that_is_used_outside_of_its_layer_is_named(tied, caplog):
    data = TensorDataset(torch.randint(0, 7, (5, 3)), torch.randn(5, 1))
    module, optimizer, loader = private(Functional(), data=data)
    with caplog.at_level(logging.WARNING, "dpcomm"):
        for x, _ in loader:
            module(x, tied).square().sum(1).mean().backward()
            optimizer.step()
    told = [record.getMessage() for record in caplog.records]
    assert ["embedding.weight has a gradient beside its layer's" in one for one in told] == (
        [True] if tied else []
    )


def test_a_sampler_that_draws_from_some_records_is_refused():
    data = TensorDataset(torch.randn(RECORDS, 4), torch.randn(RECORDS, 1))
    module = network()
    settings = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "comm": launch.alone()}
    optimizer = torch.optim.SGD(module.parameters(), 1.0)
    some = SubsetRandomSampler(range(4))
    with pytest.raises(UsageError, match=r"draws by a SubsetRandomSampler.*Subset\(dataset, ids\)"):
        dpcomm.make_private(module=module, optimizer=optimizer, **settings,
                            data_loader=DataLoader(data, 2, sampler=some))  # fmt: skip
    loader = DataLoader(Subset(data, range(4)), 2, shuffle=True)
    _, _, loader = dpcomm.make_private(
        module=module, optimizer=optimizer, **settings, data_loader=loader
    )
    assert loader.records == 4


@pytest.mark.parametrize(
    ("name", "told"), [("target_delta", "delta"), ("unclipped_num_std", "std"), ("epochs", "steps")]
)
def test_a_zero_is_refused_not_replaced(name, told):
    with pytest.raises((UsageError, ValueError), match=told):
        private(network(), clipping="adaptive", **{name: 0})


def test_no_epsilon_is_told_where_a_seed_gave_the_noise(tmp_path):
    _, optimizer, _ = private(network(), unsafe_seed=3, ledger=tmp_path / "ledger.jsonl")
    assert optimizer.get_epsilon(1e-3) == math.inf
    optimizer._toll._ledger.close()
    _, optimizer, _ = private(network(), noise_multiplier=9.0, ledger=tmp_path / "ledger.jsonl")
    assert optimizer.get_epsilon(1e-3) == math.inf


def test_a_step_whose_payment_failed_is_not_released(tmp_path, monkeypatch):
    """The disk was full, or so the system said; whoever goes on pays first."""
    path = tmp_path / "ledger.jsonl"
    module, optimizer, loader = private(network(), ledger=path)
    before = weights(module)

    def full(_):
        raise OSError(28, "No space left on device")

    sync = os.fsync
    for x, y in loader:
        (module(x) - y).square().mean().backward()
        monkeypatch.setattr(os, "fsync", full)
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                optimizer._toll.pay()
        assert not any(line["kind"] == "steps" for line in optimizer._toll._ledger.lines)
        monkeypatch.setattr(os, "fsync", sync)
        assert moved(module, before) == 0
        optimizer.step()
    assert moved(module, before) > 0.01
    optimizer._toll._ledger.close()
    assert [line["kind"] for line in Ledger(path).lines] == ["launch", "steps"]
