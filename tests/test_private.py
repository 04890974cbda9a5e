"""make_private: ordinary training code, whose steps are private."""

from __future__ import annotations

import math
import re
import threading
from functools import partial

import pytest
import torch
from groups import results, run_threads
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dpcomm
from dpcomm import MismatchError, UsageError, accounting

CLIP, RECORDS, BATCH = 0.8, 400, 40
CLIPS = {"convolution": 1.2, "norms": 1.6, "tied norms": 1.6, "embedding": 0.5}  # between norms
NO_NOISE = {"noise_multiplier": 1e-9}  # as good as none; the front door has nothing without noise


def dataset():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(RECORDS, 12, generator=generator)
    x *= torch.logspace(-1.5, 0.7, RECORDS).unsqueeze(1)  # gradients on both sides of the clip norm
    return TensorDataset(x, (x[:, 0] > 0).float())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.out = nn.Linear(12, 12), nn.Linear(12, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.inside(torch.tanh(self.inside(x)))) + x)


class Tied(nn.Module):
    """An output layer that shares its weight with the embedding, as language models have."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(10, 6, padding_idx=0), nn.Linear(6, 10)
        self.head.weight = self.table.weight

    def forward(self, x):
        words = self.table((3 * x).abs().long().clamp(max=9))  # [B, 12, 6]
        return 3 * self.head(torch.tanh(words)).square().mean((1, 2)).unsqueeze(1)


def tied_layers(make):
    """Twice the same weights, in layers of their own; the second bias is its own too."""
    first, second = make(), make()
    second.weight = first.weight
    return nn.Sequential(nn.Linear(12, 8), first, nn.Tanh(), second, nn.Linear(8, 1))


def models():
    torch.manual_seed(0)
    frozen = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1))
    frozen[0].weight.requires_grad_(False)
    return {
        "mlp": nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1)),
        "convolution": nn.Sequential(
            nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40, 1)
        ),
        "norms": nn.Sequential(
            nn.Linear(12, 8), nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 1)
        ),
        "sequence": nn.Sequential(
            nn.Unflatten(1, (3, 4)), nn.Linear(4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(15, 1)
        ),
        "twice": Twice(),
        "tied": tied_layers(lambda: nn.Linear(8, 8)),
        "tied norms": tied_layers(lambda: nn.LayerNorm(8)),
        "embedding": Tied(),
        "frozen": frozen,
    }


def loss(outputs, targets, reduction="mean"):
    return nn.functional.binary_cross_entropy_with_logits(
        outputs.squeeze(1), targets, reduction=reduction
    )


ONE_MODEL_AT_A_TIME = threading.Lock()  # ranks are threads, which share torch's generator


def private(comm, name="mlp", **settings):
    with ONE_MODEL_AT_A_TIME:
        model = models()[name]
    settings = {"noise_multiplier": 1.0, "unsafe_seed": 5} | settings
    return dpcomm.make_private(
        module=model,
        optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0),
        data_loader=DataLoader(dataset(), batch_size=BATCH, shuffle=True),
        max_grad_norm=CLIPS.get(name, CLIP),
        comm=comm,
        **settings,
    )


def flat(module):
    return torch.cat([p.detach().reshape(-1) for p in module.parameters() if p.requires_grad])


def train(comm, steps=1, **settings):
    """(the parameters' change, the batches drawn)"""
    model, optimizer, loader = private(comm, **settings)
    before, batches = flat(model), []
    parts = iter(loader)
    while optimizer._private_step.steps < steps:
        x, y = next(parts)
        batches.append((x, y))
        optimizer.zero_grad()
        loss(model(x), y, settings.get("loss_reduction", "mean")).backward()
        optimizer.step()
    return flat(model) - before, batches


def microbatches(name, batches):
    """Minus the clipped sum over the expected batch, one sample at a time, in float64."""
    model = models()[name].double()
    parameters = [p for p in model.parameters() if p.requires_grad]
    total, clipped, samples, clip_norm = 0.0, 0, 0, CLIPS.get(name, CLIP)
    for x, y in batches:
        for sample, target in zip(x.double(), y.double(), strict=True):
            gradients = torch.autograd.grad(loss(model(sample[None]), target[None]), parameters)
            gradient = torch.cat([g.reshape(-1) for g in gradients])
            total = total + gradient * min(1.0, clip_norm / float(gradient.norm()))
            clipped += float(gradient.norm()) > clip_norm
            samples += 1
    assert 0 < clipped < samples, "both kinds of samples are there"
    return -total / BATCH


@pytest.mark.parametrize(
    "settings", [{}, {"loss_reduction": "sum"}, {"max_physical_batch_size": 7}], ids=str
)
@pytest.mark.parametrize("name", models())
def test_a_step_equals_the_microbatch_loop(name, settings):
    ((change, batches),) = results(
        run_threads(1, lambda comm: train(comm, name=name, **settings, **NO_NOISE))
    )
    expected = microbatches(name, batches)
    assert float((change.double() - expected).norm() / expected.norm()) < 2e-6
    if "max_physical_batch_size" in settings:
        assert len(batches) > 3
        assert max(len(x) for x, _ in batches) == 7


@pytest.mark.parametrize("size", [2, 8])
def test_any_number_of_ranks_takes_the_same_steps(size):
    ((alone, _),) = results(run_threads(1, lambda comm: train(comm, 3)))
    outcomes = results(run_threads(size, lambda comm: train(comm, 3)))
    for change, _ in outcomes:
        assert torch.equal(change, outcomes[0][0])
    torch.testing.assert_close(outcomes[0][0], alone, rtol=1e-4, atol=1e-5)


def test_batches_that_are_empty_are_steps_too():
    def body(comm):
        model, optimizer, loader = private(comm, **NO_NOISE)
        loader.sample_rate = 1e-4
        before = flat(model)
        for x, y in loader:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
            if optimizer._private_step.steps == 20:
                break
        return flat(model) - before, optimizer._private_step.steps

    ((change, steps),) = results(run_threads(1, body))
    assert steps == 20
    assert change.isfinite().all()
    assert change.norm() < 0.1


def test_noise_has_its_standard_deviation():
    """Over 3 steps from two seeds, whose samples differ little beside a noise of σ = 50."""
    changes = [
        results(run_threads(2, partial(train, steps=3, noise_multiplier=50.0, unsafe_seed=seed)))
        for seed in range(8)
    ]
    noise = torch.cat([outcome[0][0] for outcome in changes])
    expected = math.sqrt(3) * 50 * CLIP / BATCH
    assert float(noise.std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * len(noise)))


def test_epsilon_is_that_of_the_steps_taken():
    def body(comm):
        model, optimizer, loader = private(
            comm, target_epsilon=2.0, target_delta=1e-4, epochs=2, noise_multiplier=None,
            accountant="rdp", unsafe_seed=None,
        )  # fmt: skip
        seen = [optimizer.get_epsilon(1e-4)]
        for _ in range(2):
            for x, y in loader:
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()
            seen.append(optimizer.get_epsilon(1e-4))
        return seen, optimizer._private_step.noise_multiplier

    (((nothing, half, whole), sigma),) = results(run_threads(1, body))
    assert nothing == 0 < half < whole
    assert 0.99 * 2 <= whole <= 2
    assert whole == accounting.epsilon(BATCH / RECORDS, sigma, 20, 1e-4, "rdp")


def test_two_batches_in_one_step_are_refused():
    def body(comm):
        model, optimizer, loader = private(comm)
        for x, y in loader:
            loss(model(x), y).backward()
        optimizer.step()

    (error,) = run_threads(1, body)
    assert isinstance(error, UsageError)
    assert "a record in both would count twice" in str(error)


def test_two_steps_on_one_batch_are_refused():
    def body(comm):
        model, optimizer, loader = private(comm)
        x, y = next(iter(loader))
        for _ in range(2):
            loss(model(x), y).backward()
            optimizer.step()

    (error,) = run_threads(1, body)
    assert isinstance(error, UsageError)
    assert "no batch was drawn since the last step" in str(error)


def backward_twice(model, x, y):
    for _ in range(2):
        loss(model(x), y).backward()


def backward_twice_on_one_sample(model, x, y):
    backward_twice(model, x[:1], y[:1])


def backward_on_two_copies(model, x, y):
    loss(model(torch.cat([x, x])), torch.cat([y, y])).backward()


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (backward_twice, "passed backward twice for one step"),
        (backward_twice_on_one_sample, "passed backward twice for one step"),
        (backward_on_two_copies, "samples were passed backward, of a batch of"),
    ],
)
def test_a_record_that_would_count_twice_is_refused(misuse, message):
    def body(comm):
        model, optimizer, loader = private(comm)
        misuse(model, *next(iter(loader)))
        optimizer.step()

    (error,) = run_threads(1, body)
    assert isinstance(error, UsageError)
    assert message in str(error)


def test_several_losses_of_a_batch_are_clipped_as_one():
    """Two passes forward and one backward move the sum by no more than one."""

    def body(comm):
        model, optimizer, loader = private(comm, **NO_NOISE)
        x, y = next(iter(loader))
        before = flat(model)
        (1e3 * (loss(model(x[-1:]), y[-1:]) + loss(model(x[-1:]), 1 - y[-1:]))).backward()
        optimizer.step()
        return float((flat(model) - before).norm()) * BATCH

    assert results(run_threads(1, body))[0] <= CLIP * (1 + 1e-5)


def test_a_pass_that_another_batch_overtook_counts_for_nothing():
    def body(comm):
        model, optimizer, loader = private(comm, **NO_NOISE)
        batches = iter(loader)
        (x, y), before = next(batches), flat(model)
        late = loss(model(x[-1:]), y[-1:])
        next_x, next_y = next(batches)
        (1e3 * (late + loss(model(next_x[-1:]), next_y[-1:]))).backward()
        optimizer.step()
        return float((flat(model) - before).norm()) * BATCH

    assert results(run_threads(1, body))[0] <= CLIP * (1 + 1e-5)


def test_ranks_that_differ_are_told_so():
    def body(comm):
        private(comm, noise_multiplier=1.0 + comm.rank)

    for error in run_threads(2, body):
        assert isinstance(error, MismatchError)
        assert "noise_multiplier is 1.0 on rank 0, 2.0 on rank 1" in str(error)


def test_schedulers_and_parameter_groups_work_on():
    def body(comm):
        model, optimizer, loader = private(comm)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer.original, 1, gamma=0.5)
        x, y = next(iter(loader))
        loss(model(x), y).backward()
        optimizer.step()
        scheduler.step()
        return optimizer.param_groups[0]["lr"]

    assert results(run_threads(1, body)) == [0.5]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8)), "BatchNorm1d.*GroupNorm"),
        (nn.MultiheadAttention(12, 2), "holds parameters beside layers"),
    ],
)
def test_modules_that_hooks_cannot_follow_are_refused(module, message):
    def body(comm):
        dpcomm.make_private(
            module=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
            data_loader=DataLoader(dataset(), batch_size=BATCH),
            noise_multiplier=1.0,
            max_grad_norm=CLIP,
            comm=comm,
        )

    (error,) = run_threads(1, body)
    assert isinstance(error, UsageError)
    assert re.search(message, str(error))


def test_what_would_escape_the_noise_is_refused():
    def body(comm):
        model = models()["mlp"]
        dpcomm.make_private(
            module=model[0],
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
            data_loader=DataLoader(dataset(), batch_size=BATCH),
            noise_multiplier=1.0,
            max_grad_norm=CLIP,
            comm=comm,
        )

    (error,) = run_threads(1, body)
    assert isinstance(error, UsageError)
    assert "would not be private" in str(error)
