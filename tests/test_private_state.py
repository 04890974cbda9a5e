"""make_private's optimizer saved and restored, and models that torch.compile has seen."""

from __future__ import annotations

import io

import pytest
import torch
from groups import results, run_threads
from test_private import (
    BATCH,
    CLIP,
    CLIPS,
    NO_NOISE,
    ONE_MODEL_AT_A_TIME,
    dataset,
    flat,
    loss,
    models,
)
from torch.utils.data import DataLoader

import dpcomm

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "left to torch": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True),
}


def made(comm, optimizer, model=None, **settings):
    with ONE_MODEL_AT_A_TIME:
        model = model or models()["mlp"]
    return dpcomm.make_private(
        module=model,
        optimizer=OPTIMIZERS[optimizer](model.parameters()),
        data_loader=DataLoader(dataset(), batch_size=BATCH),
        max_grad_norm=CLIP,
        comm=comm,
        **{"unsafe_seed": 5} | NO_NOISE | settings,
    )


def take(steps, model, optimizer, loader):
    for _, (x, y) in zip(range(steps), loader, strict=False):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()


def copied(saved):
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_is_torchs_and_a_plain_optimizer_takes_it(name):
    def body(comm):
        model, optimizer, loader = made(comm, name)
        take(3, model, optimizer, loader)
        return copied(optimizer.state_dict())

    saved, other = results(run_threads(2, body))
    model = models()["mlp"]
    plain = OPTIMIZERS[name](model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    plain.step()
    expected = plain.state_dict()
    assert saved["param_groups"] == expected["param_groups"]
    assert saved["state"].keys() == expected["state"].keys() or name == "sgd"
    for index, state in expected["state"].items():
        for key, value in state.items():
            if value is None:  # plain SGD notes that it has no momentum
                continue
            mine = saved["state"][index][key]
            assert (mine.shape, mine.dtype) == (value.shape, value.dtype)
            assert torch.equal(mine, other["state"][index][key]), "the ranks' states differ"
    plain.load_state_dict(saved)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_from_its_state_on_another_number_of_ranks(name, size):
    def begin(comm):
        model, optimizer, loader = made(comm, name)
        take(3, model, optimizer, loader)
        saved = copied({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        assert loader.drawn == 3
        take(3, model, optimizer, loader)
        return saved, flat(model)

    def go_on(comm, saved):
        model, optimizer, loader = made(comm, name)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.drawn = 3  # the same batches, which without a seed no resume draws again
        optimizer._stepped = 3
        take(3, model, optimizer, loader)
        return flat(model)

    (saved, whole), _ = results(run_threads(2, begin))
    resumed = results(run_threads(size, lambda comm: go_on(comm, copied(saved))))
    for other in resumed:
        assert torch.equal(other, resumed[0])
    torch.testing.assert_close(resumed[0], whole, rtol=1e-4, atol=1e-5)


def test_a_resume_draws_other_noise():
    """Without a seed: a state tells no key, so that nothing is drawn twice."""

    def body(comm):
        moved, saved = [], None
        for _ in range(2):
            model, optimizer, loader = made(comm, "sgd", noise_multiplier=50.0, unsafe_seed=None)
            if saved:
                optimizer.load_state_dict(saved)
            before = flat(model)
            take(1, model, optimizer, loader)
            moved.append(flat(model) - before)
            saved = copied(optimizer.state_dict())
        return moved

    ((first, second),) = results(run_threads(1, body))
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    assert abs(float(correlation)) < 5 / len(first) ** 0.5


@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["mlp", "convolution", "norms", "twice", "tied"])
def test_a_compiled_model_takes_the_same_steps(name, when, clipping):
    def body(comm, compiled):
        torch._dynamo.reset()
        model = models()[name]
        module = torch.compile(model, backend="aot_eager") if compiled == "before" else model
        private, optimizer, loader = dpcomm.make_private(
            module=module,
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
            data_loader=DataLoader(dataset(), batch_size=BATCH),
            max_grad_norm=CLIPS.get(name, CLIP),
            clipping=clipping,
            comm=comm,
            unsafe_seed=5,
            **NO_NOISE,
        )
        if compiled == "after":
            private = torch.compile(private, backend="aot_eager")
        before = flat(model)
        take(2, private, optimizer, loader)
        return flat(model) - before

    (eager,) = results(run_threads(1, lambda comm: body(comm, "never")))
    (compiled,) = results(run_threads(1, lambda comm: body(comm, when)))
    assert eager.norm() > 0
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)
