from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from dpcomm import _core
from dpcomm.privacy.mlp import ACTIVATIONS, LOSSES, Layer, Mlp, Records

torch = pytest.importorskip("torch")
F = torch.nn.functional

MODULES = {
    "none": torch.nn.Identity,
    "relu": torch.nn.ReLU,
    "tanh": torch.nn.Tanh,
    "sigmoid": torch.nn.Sigmoid,
    "gelu": torch.nn.GELU,
}
TORCH_LOSS = {
    "binary_cross_entropy": lambda y, t: F.binary_cross_entropy_with_logits(
        y, t.reshape(y.shape), reduction="sum"
    ),
    "cross_entropy": lambda y, t: F.cross_entropy(y, t.long(), reduction="sum"),
    "squared_error": lambda y, t: F.mse_loss(y, t.reshape(y.shape), reduction="sum"),
}
ISAS = [isa for isa in _core.noise_isas() if isa != "scalar"]
CENSUS = [Layer(40, 64, "relu"), Layer(64, 32, "relu"), Layer(32, 1)]


def chain(sizes: list[int], activation: str, last: str = "none", bias: bool = True) -> list[Layer]:
    hidden = [Layer(a, b, activation, bias) for a, b in pairwise(sizes[:-1])]
    return [*hidden, Layer(sizes[-2], sizes[-1], last, bias)]


class Case:
    """A model of ours, the same in torch with float64 parameters, and a batch."""

    def __init__(self, layers: list[Layer], loss: str, batch: int, seed: int = 0):
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        modules = [
            module
            for x in layers
            for module in (torch.nn.Linear(x.inputs, x.outputs, x.bias), MODULES[x.activation]())
        ]
        self.layers, self.loss, self.batch = layers, loss, batch
        self.module = torch.nn.Sequential(*modules)
        self.parameters = torch.nn.utils.parameters_to_vector(self.module.parameters())
        self.parameters = self.parameters.detach().numpy()
        self.module.double()
        self.x = rng.standard_normal((batch, layers[0].inputs), np.float32)
        outputs = layers[-1].outputs
        if loss == "cross_entropy":
            self.t = rng.integers(0, outputs, batch).astype(np.float32)
        elif loss == "binary_cross_entropy":
            self.t = rng.integers(0, 2, (batch, outputs)).astype(np.float32)
        else:
            self.t = rng.standard_normal((batch, outputs), np.float32)

    def run(self, clip_norm: float, *, threads: int = 1, isa: str = "auto", **options):
        mlp = Mlp(self.layers, self.loss, threads=threads, isa=isa)
        total = options.pop("total", np.full(mlp.parameters, np.nan, np.float32))
        norms, losses = np.empty(self.batch), np.empty(self.batch, np.float32)
        result = mlp.clipped_sum(
            self.parameters, Records(self.x, self.t), clip_norm, total,
            norms=norms, losses=losses, **options,
        )  # fmt: skip
        return total, norms, losses, result.nonfinite

    def microbatches(self) -> tuple[np.ndarray, np.ndarray]:
        """One backward a sample, float64: gradients [B, P] and losses [B]."""
        rows, losses = [], []
        for i in range(self.batch):
            y = self.module(torch.from_numpy(self.x[i : i + 1]).double())
            loss = TORCH_LOSS[self.loss](y, torch.from_numpy(self.t[i : i + 1]).double())
            grads = torch.autograd.grad(loss, list(self.module.parameters()))
            rows.append(torch.cat([g.flatten() for g in grads]).numpy())
            losses.append(loss.item())
        return np.array(rows), np.array(losses)


def exact_norm(x: np.ndarray) -> float:
    return math.sqrt(math.fsum((x.astype(np.float64) ** 2).tolist()))


def relative(x: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(x - reference) / np.linalg.norm(reference))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("sizes", "batch"),
    [([40, 64, 32, 3], 77), ([7, 33, 17, 5], 33), ([3, 2], 1), ([49, 100, 2], 300)],
)
def test_equals_the_microbatch_loop(sizes, batch, activation, loss):
    case = Case(chain(sizes, activation), loss, batch)
    grads, losses = case.microbatches()
    true_norms = np.linalg.norm(grads, axis=1)
    clip_norm = float(np.median(true_norms)) * 1.0001  # some samples clipped, some not
    total, norms, our_losses, nonfinite = case.run(clip_norm, threads=2)
    clipped = np.minimum(1, clip_norm / true_norms)[:, None] * grads
    # Where samples cancel, relative to the numbers that were added.
    assert np.linalg.norm(total - clipped.sum(0)) < 1e-6 * np.linalg.norm(abs(clipped).sum(0))
    assert np.allclose(norms, true_norms, rtol=2e-6)
    assert np.allclose(our_losses, losses, rtol=2e-6, atol=1e-6)
    assert nonfinite == 0


@pytest.mark.parametrize("last", ACTIVATIONS)
def test_layers_without_bias_and_an_activation_behind_the_last_one(last):
    case = Case(chain([9, 20, 4], "tanh", last, bias=False), "squared_error", 50)
    grads, _ = case.microbatches()
    true_norms = np.linalg.norm(grads, axis=1)
    clip_norm = float(np.median(true_norms[true_norms > 0]))
    total, *_ = case.run(clip_norm)
    assert relative(total, np.minimum(1, clip_norm / np.maximum(true_norms, 1e-30)) @ grads) < 1e-6


def test_a_batch_of_several_chunks():
    case = Case(CENSUS, "binary_cross_entropy", 1700)
    grads, _ = case.microbatches()
    true_norms = np.linalg.norm(grads, axis=1)
    clip_norm = float(np.median(true_norms))
    total, *_ = case.run(clip_norm, threads=2)
    assert relative(total, np.minimum(1, clip_norm / true_norms) @ grads) < 1e-6


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_same_bits_for_any_threads_and_any_width(activation):
    case = Case(chain([41, 70, 33, 2], activation), "cross_entropy", 1111)
    first = case.run(0.5, threads=1, isa="auto")
    for isa in ISAS:
        for threads in (1, 2, 3, 8):
            again = case.run(0.5, threads=threads, isa=isa)
            assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True)), isa


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["input", "target"])
def test_a_sample_that_is_not_finite_changes_nothing_but_its_counter(value, where):
    case = Case(chain([40, 64, 3], "relu"), "squared_error", 100)
    bad = [0, 13, 31, 32, 99]
    (case.x if where == "input" else case.t)[bad, 1] = value
    total, norms, _, nonfinite = case.run(1.0)
    assert nonfinite == len(bad)
    assert not np.isfinite(norms[bad]).any()
    case.x[bad], case.t[bad] = 0, 0
    zero_gradient = case.run(1.0)[1]
    good = np.setdiff1d(np.arange(100), bad)
    assert np.array_equal(zero_gradient[good], norms[good])
    case.x, case.t, case.batch = case.x[good], case.t[good], len(good)
    without, _, _, nonfinite = case.run(1.0)
    assert nonfinite == 0
    assert relative(total, without) < 1e-6


def test_an_infinite_input_behind_a_dead_unit_is_counted():
    case = Case([Layer(2, 4, "relu"), Layer(4, 1)], "squared_error", 1)
    case.parameters[:] = -1  # the only finite gradient left would be that of the last bias
    case.x[:] = np.inf
    total, _, _, nonfinite = case.run(1.0)
    assert nonfinite == 1
    assert not total.any()


def test_an_empty_batch_gives_zeros_and_joins_an_accumulation():
    case = Case(CENSUS, "binary_cross_entropy", 64)
    nothing = np.array([], np.int64)
    mlp = Mlp(CENSUS, case.loss)
    total = np.full(mlp.parameters, 7, np.float32)
    records = Records(case.x, case.t)
    assert mlp.clipped_sum(case.parameters, records, 1.0, total, ids=nothing).nonfinite == 0
    assert not total.any()
    total[:] = 7
    mlp.clipped_sum(case.parameters, records, 1.0, total, ids=nothing, accumulate=True)
    assert (total == 7).all()


def test_parts_of_a_batch_add_up():
    case = Case(CENSUS, "binary_cross_entropy", 512)
    whole, *_ = case.run(0.5)
    mlp = Mlp(CENSUS, case.loss)
    total = np.empty_like(whole)
    for part, accumulate in ((np.arange(256), False), (np.arange(256, 512), True)):
        mlp.clipped_sum(case.parameters, Records(case.x, case.t), 0.5, total, ids=part,
                        accumulate=accumulate)  # fmt: skip
    assert relative(total, whole) < 1e-6


@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1, 3e4, 1e18])
@pytest.mark.parametrize("clip_norm", [1e-3, 0.1, 1.0, 17.3])
def test_no_sample_adds_more_than_the_clip_norm_to_the_last_bit(scale, clip_norm):
    case = Case(chain([13, 40, 3], "relu"), "squared_error", 200)
    case.x *= np.float32(scale)
    mlp = Mlp(case.layers, case.loss)
    total = np.empty(mlp.parameters, np.float32)
    norms = np.empty(1)
    records = Records(case.x, case.t)
    clipped = 0
    for i in range(200):
        mlp.clipped_sum(case.parameters, records, clip_norm, total, ids=np.array([i]), norms=norms)
        assert exact_norm(total) <= clip_norm
        if norms[0] > clip_norm:
            clipped += 1
            # The factor itself may be too small for all bits of a float.
            assert exact_norm(total) > clip_norm * (1 - (1e-6 if scale < 1e6 else 1e-3))
    assert clipped or scale <= 1


@pytest.mark.parametrize("clip_norm", [12.0, 12.1])
def test_a_norm_of_exactly_the_clip_norm(clip_norm):
    mlp = Mlp([Layer(1, 1, bias=False)], "squared_error")
    total, zero = np.empty(1, np.float32), np.zeros(1, np.float32)
    x, t = np.array([[3]], np.float32), np.array([-2], np.float32)
    mlp.clipped_sum(zero, Records(x, t), clip_norm, total)  # 2 (0 + 2) * 3 = 12
    assert 12 * (1 - 4e-7) < total[0] <= 12
    assert clip_norm == 12.0 or total[0] == 12


def test_a_batch_is_gathered_from_shards_by_id():
    case = Case(CENSUS, "binary_cross_entropy", 100)
    rows = np.concatenate([case.x, case.t], axis=1)
    shards = [rows[:31].copy(), rows[31:32].copy(), rows[32:32], rows[32:].copy()]
    records = Records([s[:, :-1] for s in shards], [s[:, -1] for s in shards])
    assert len(records) == 100
    ids = np.random.default_rng(1).integers(0, 100, 150)
    mlp = Mlp(CENSUS, case.loss)
    total = np.empty(mlp.parameters, np.float32)
    mlp.clipped_sum(case.parameters, records, 0.5, total, ids=ids)
    case.x, case.t, case.batch = case.x[ids], case.t[ids], 150
    assert np.array_equal(total, case.run(0.5)[0])


def test_the_plain_sum_and_the_outputs_are_those_of_torch():
    case = Case(chain([20, 50, 4], "gelu"), "cross_entropy", 400)
    mlp = Mlp(case.layers, case.loss, threads=2)
    records = Records(case.x, torch.from_numpy(case.t))
    total, losses = np.empty(mlp.parameters, np.float32), np.empty(400, np.float32)
    mlp.gradient_sum(case.parameters, records, total)
    outputs = mlp.evaluate(case.parameters, records, losses=losses)
    y = case.module(torch.from_numpy(case.x).double())
    loss = TORCH_LOSS[case.loss](y, torch.from_numpy(case.t))
    grads = torch.autograd.grad(loss, list(case.module.parameters()))
    assert relative(total, torch.cat([g.flatten() for g in grads]).numpy()) < 1e-6
    assert np.allclose(outputs, y.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert abs(losses.sum(dtype=np.float64) / loss.item() - 1) < 1e-6


def test_torch_tensors_serve_as_buffers():
    case = Case(CENSUS, "binary_cross_entropy", 64)
    mlp = Mlp(CENSUS, case.loss)
    total = torch.empty(mlp.parameters)
    parameters = torch.from_numpy(case.parameters)
    mlp.clipped_sum(parameters, Records(torch.from_numpy(case.x), case.t), 0.5, total)
    assert np.array_equal(total.numpy(), case.run(0.5)[0])


def test_what_cannot_be_right_is_refused_with_the_fix():
    case = Case(CENSUS, "binary_cross_entropy", 8)
    mlp, records = Mlp(CENSUS, case.loss), Records(case.x, case.t)
    total = np.empty(mlp.parameters, np.float32)
    for clip_norm in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="give a positive, finite norm"):
            mlp.clipped_sum(case.parameters, records, clip_norm, total)
    for bad in (-1, 8):
        with pytest.raises(ValueError, match=f"record id {bad} at position 1: there are 8 records"):
            mlp.clipped_sum(case.parameters, records, 1.0, total, ids=np.array([0, bad]))
    with pytest.raises(ValueError, match="total of 3 float32 on cpu: pass 4737 float32"):
        mlp.clipped_sum(case.parameters, records, 1.0, total[:3])
    with pytest.raises(ValueError, match="records of 39 features: the first layer takes 40"):
        mlp.evaluate(case.parameters, Records(case.x[:, :39]))
    with pytest.raises(ValueError, match="records with 0 targets each"):
        mlp.clipped_sum(case.parameters, Records(case.x), 1.0, total)
    with pytest.raises(ValueError, match="7 targets for 8 inputs"):
        Records(case.x, case.t[:7])
    with pytest.raises(ValueError, match="rows must lie without gaps"):
        Records(np.asfortranarray(case.x))
    with pytest.raises(ValueError, match="takes 5 inputs, but layer 0 gives 4"):
        Mlp([Layer(3, 4), Layer(5, 1)], "squared_error")
    with pytest.raises(ValueError, match="activation 'swish' is unknown"):
        Mlp([Layer(3, 4, "swish")], "squared_error")
    with pytest.raises(ValueError, match="cross entropy of one output"):
        Mlp([Layer(3, 1)], "cross_entropy")
