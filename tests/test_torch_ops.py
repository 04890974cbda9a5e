"""The operators behave as torch demands of its own, on the CPU and on a GPU where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import dpcomm
from dpcomm import torch_ops

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
KEY = bytes(range(32))
HEX = KEY.hex()


def at(step, device="cpu"):
    return torch.tensor(step, device=device)


@pytest.fixture(params=DEVICES)
def grads(request):
    torch.manual_seed(1)
    return [torch.randn(5, *shape, device=request.param) for shape in ((7, 3), (11,))]


def test_opcheck_passes_on_clip_sum(grads):
    torch.library.opcheck(torch.ops.dpcomm.clip_sum, (grads, 1.0))
    torch.library.opcheck(torch.ops.dpcomm.clip_sum, ([g[:0] for g in grads], 1.0))


def test_opcheck_passes_on_add_noise(grads):
    torch.library.opcheck(torch.ops.dpcomm.add_noise_, (grads[1], 0.5, HEX, at(3, grads[1].device)))


def test_opcheck_passes_on_the_updates(grads):
    device = grads[1].device
    tensors = [torch.rand(77, device=device) for _ in range(4)]
    noise = {"std": 0.5, "key": HEX, "step": at(3, device), "offset": 9, "scale": 0.25}
    ops = torch.ops.dpcomm
    torch.library.opcheck(ops.sgd_update_, (*tensors[:2], None), {"lr": 0.1, **noise})
    torch.library.opcheck(
        ops.sgd_update_, tuple(tensors[:3]), {"lr": 0.1, "momentum": 0.9, **noise}
    )
    torch.library.opcheck(ops.adam_update_, tuple(tensors), {"count": at(1, device), **noise})


def test_the_update_operators_do_what_the_functions_do():
    noise = {"std": 0.5, "generator": "philox"}
    for ours, operator, arrays, settings, counts in (
        (dpcomm.sgd_update_, torch_ops.sgd_update_, 3, {"lr": 0.1, "momentum": 0.9}, {"step": 3}),
        (dpcomm.adam_update_, torch_ops.adam_update_, 4, {"betas": (0.8, 0.9)},
         {"step": 3, "count": 2}),
    ):  # fmt: skip
        here = [torch.rand(77) for _ in range(arrays)]
        there = [tensor.clone() for tensor in here]
        counters = {name: at(number) for name, number in counts.items()}
        for past in range(3):
            ours(*here, key=KEY, **settings, **noise, **{n: c + past for n, c in counts.items()})
            operator(*there, key=HEX, **settings, **noise, **counters)
        for a, b in zip(here, there, strict=True):
            assert torch.equal(a, b)


def test_the_operators_do_what_the_functions_do(grads):
    total, norms, nonfinite = torch_ops.clip_sum(grads, 1.0)
    clipped = dpcomm.clip_sum(grads, 1.0)
    assert torch.equal(total, clipped.total)
    assert torch.equal(norms, clipped.norms)
    assert int(nonfinite) == int(clipped.nonfinite) == 0
    expected = dpcomm.add_noise_(total.clone(), 0.5, KEY, 3, 100, "philox", scale=0.25)
    step = at(3, total.device)
    assert torch.equal(torch_ops.add_noise_(total, 0.5, HEX, step, 100, "philox", 0.25), expected)
    assert int(step) == 4


def private_sum(first, second, step):
    total, _, _ = torch_ops.clip_sum([first, second], 1.0)
    return torch_ops.add_noise_(total, 0.5, HEX, step)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_passes_over_them(grads, mode):
    device = grads[0].device
    traced = make_fx(private_sum, tracing_mode=mode)(*grads, at(3, device))
    targets = {node.target for node in traced.graph.nodes}
    assert torch.ops.dpcomm.clip_sum.default in targets
    assert torch.ops.dpcomm.add_noise_.default in targets
    draws_a_noise_of_each_step(traced, grads)


def draws_a_noise_of_each_step(traced, grads):
    step = at(3, grads[0].device)
    first, second = traced(*grads, step), traced(*grads, step)
    assert int(step) == 5
    assert torch.equal(first, private_sum(*grads, at(3, step.device)))
    assert torch.equal(second, private_sum(*grads, at(4, step.device)))
    assert not torch.equal(first, second)


def test_torch_compile_passes_over_them(grads):
    compiled = torch.compile(private_sum, fullgraph=True, backend="aot_eager")
    draws_a_noise_of_each_step(compiled, grads)


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_a_step_that_is_an_array_is_raised(make):
    step, count = make(3), make(1)
    array = (lambda: np.ones(9, np.float32)) if make is np.array else (lambda: torch.ones(9))
    expected = dpcomm.add_noise_(array(), 0.5, KEY, 3)
    assert bool((dpcomm.add_noise_(array(), 0.5, KEY, step) == expected).all())
    dpcomm.adam_update_(*(array() for _ in range(4)), count=count, std=1.0, key=KEY, step=step)
    dpcomm.sgd_update_(array(), array(), lr=0.1, std=1.0, key=KEY, step=step)
    assert (int(step), int(count)) == (6, 2)


def test_a_step_that_is_no_counter_is_refused():
    buffer = torch.ones(9)
    with pytest.raises(ValueError, match=r"step has 2 elements on cpu: pass an integer, or one"):
        dpcomm.add_noise_(buffer, 0.5, KEY, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"step has dtype float32"):
        dpcomm.add_noise_(buffer, 0.5, KEY, torch.tensor(1.0))
    assert bool((buffer == 1).all())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("adam", [False, True])
def test_a_cuda_graph_of_a_private_step_draws_other_noise_each_time(adam):
    """Per-sample gradients, clip, noise and update, captured once and run three times."""
    torch.manual_seed(0)
    x, t = torch.randn(64, 40, device="cuda"), torch.randn(64, 1, device="cuda")

    def gradient(weight, row, target):
        return (row @ weight - target).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(gradient), in_dims=(None, 0, 0))

    def private_step(weight, step, states, count):
        total, _, _ = torch_ops.clip_sum(per_sample(weight, x, t), 1.0)
        settings = {"std": 0.5, "key": HEX, "step": step, "scale": 1 / 64, "lr": 0.1}
        if adam:
            torch_ops.adam_update_(weight.view(-1), total, *states, count=count, **settings)
        else:
            torch_ops.sgd_update_(weight.view(-1), total, **settings)

    def fresh():
        states = [torch.zeros(40, device="cuda") for _ in range(2)]
        return torch.ones(40, 1, device="cuda"), at(5, "cuda"), states, at(1, "cuda")

    expected = fresh()
    for _ in range(3):
        private_step(*expected)
    captured = fresh()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        private_step(*fresh())  # to warm up
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        private_step(*captured)
    for _ in range(3):
        graph.replay()
    assert torch.equal(captured[0], expected[0])
    assert int(captured[1]) == 8
