"""The private hook of DDP: the clipped sum, noise once, over the expected batch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_backend import torchrun
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dpcomm

sys.path.insert(0, str(Path(__file__).parent / "programs"))
from private_hook import (
    CLIP_NORM,
    EXPECTED_BATCH,
    clipped,
    losses,
    network,
    records,
)


def gradients(folder: Path, size: int, noise_multiplier: float, backend="dpcomm") -> torch.Tensor:
    """[3 steps, parameters], as rank 0 has them after the hook."""
    out = folder / f"{size}{backend}"
    torchrun(size, "private_hook.py", str(out), str(noise_multiplier), backend)
    return torch.load(out)


@pytest.mark.parametrize(("size", "backend"), [(1, "dpcomm"), (3, "dpcomm"), (2, "gloo")])
def test_it_is_the_clipped_sum_of_all_ranks_over_the_expected_batch(tmp_path, size, backend):
    net, (x, t) = network(), records()
    loss = (clipped(net, x, t) * losses(net, x, t)).sum() / EXPECTED_BATCH
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(net.parameters()))])
    for gradient in gradients(tmp_path, size, 1e-9, backend):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_its_noise_has_the_right_deviation_at_any_number_of_ranks(tmp_path, size):
    """σ = 1000, beside which the samples are nothing. The estimate from n numbers is off by more
    than 4 / √(2n) once in 16,000 times; noise by every rank would be √size too much."""
    noise = gradients(tmp_path, size, 1000.0)
    expected = 1000.0 * CLIP_NORM / EXPECTED_BATCH
    within = 4 / (2 * noise.shape[1]) ** 0.5
    for one in noise:
        assert float(one.std()) == pytest.approx(expected, rel=within)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(torch.corrcoef(noise[[i, j]])[0, 1]) < 5 / noise.shape[1] ** 0.5


@pytest.fixture
def alone():
    dist.init_process_group("dpcomm", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), {}, "BatchNorm1d"),
        (nn.Linear(2, 2), {"find_unused_parameters": True}, "would get no noise"),
        (nn.Linear(2, 2).double(), {}, "float64"),
    ],
)
@pytest.mark.usefixtures("alone")
def test_models_whose_gradients_would_escape_are_refused(module, settings, message):
    model = DistributedDataParallel(module, **settings)
    with pytest.raises(dpcomm.UsageError, match=message):
        dpcomm.register_private_hook(model, 1.0, 1.0, 10.0)
