"""The operators behave as torch demands of its own, on the CPU and on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import dpcomm
from dpcomm import torch_ops

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
KEY = bytes(range(32))
HEX = KEY.hex()


@pytest.fixture(params=DEVICES)
def grads(request):
    torch.manual_seed(1)
    return [torch.randn(5, *shape, device=request.param) for shape in ((7, 3), (11,))]


def test_opcheck_passes_on_clip_sum(grads):
    torch.library.opcheck(torch.ops.dpcomm.clip_sum, (grads, 1.0))
    torch.library.opcheck(torch.ops.dpcomm.clip_sum, ([g[:0] for g in grads], 1.0))


def test_opcheck_passes_on_add_noise(grads):
    torch.library.opcheck(torch.ops.dpcomm.add_noise_, (grads[1], 0.5, HEX, 3))


def test_opcheck_passes_on_the_updates(grads):
    tensors = [torch.rand(77, device=grads[1].device) for _ in range(4)]
    noise = {"std": 0.5, "key": HEX, "step": 3, "offset": 9, "scale": 0.25}
    ops = torch.ops.dpcomm
    torch.library.opcheck(ops.sgd_update_, (*tensors[:2], None), {"lr": 0.1, **noise})
    torch.library.opcheck(
        ops.sgd_update_, tuple(tensors[:3]), {"lr": 0.1, "momentum": 0.9, **noise}
    )
    torch.library.opcheck(ops.adam_update_, tuple(tensors), {"count": 1, **noise})


def test_the_update_operators_do_what_the_functions_do():
    noise = {"std": 0.5, "step": 3, "generator": "philox"}
    for ours, operator, count, settings in (
        (dpcomm.sgd_update_, torch_ops.sgd_update_, 3, {"lr": 0.1, "momentum": 0.9}),
        (dpcomm.adam_update_, torch_ops.adam_update_, 4, {"count": 2, "betas": (0.8, 0.9)}),
    ):
        here = [torch.rand(77) for _ in range(count)]
        there = [tensor.clone() for tensor in here]
        ours(*here, key=KEY, **settings, **noise)
        operator(*there, key=HEX, **settings, **noise)
        for a, b in zip(here, there, strict=True):
            assert torch.equal(a, b)


def test_the_operators_do_what_the_functions_do(grads):
    total, norms, nonfinite = torch_ops.clip_sum(grads, 1.0)
    clipped = dpcomm.clip_sum(grads, 1.0)
    assert torch.equal(total, clipped.total)
    assert torch.equal(norms, clipped.norms)
    assert int(nonfinite) == int(clipped.nonfinite) == 0
    expected = dpcomm.add_noise_(total.clone(), 0.5, KEY, 3, 100, "philox", scale=0.25)
    assert torch.equal(torch_ops.add_noise_(total, 0.5, HEX, 3, 100, "philox", 0.25), expected)


def private_sum(first, second):
    total, _, _ = torch_ops.clip_sum([first, second], 1.0)
    return torch_ops.add_noise_(total, 0.5, HEX, 3)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_passes_over_them(grads, mode):
    traced = make_fx(private_sum, tracing_mode=mode)(*grads)
    targets = {node.target for node in traced.graph.nodes}
    assert torch.ops.dpcomm.clip_sum.default in targets
    assert torch.ops.dpcomm.add_noise_.default in targets
    assert torch.equal(traced(*grads), private_sum(*grads))


def test_torch_compile_passes_over_them(grads):
    compiled = torch.compile(private_sum, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*grads), private_sum(*grads))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_cuda_graph_captures_them():
    grads = [torch.randn(64, size, device="cuda") for size in (1000, 5000)]
    eager = private_sum(*grads)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        private_sum(*grads)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = private_sum(*grads)
    graph.replay()
    assert torch.equal(captured, eager)
