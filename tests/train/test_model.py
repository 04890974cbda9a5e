"""What is measured of a model, and which models are taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from groups import results, run_threads
from torch import nn

from dpcomm import UsageError
from dpcomm.data import shards
from dpcomm.privacy.mlp import Mlp
from dpcomm.privacy.sampling import share
from dpcomm.torch import ClippedGradient, FlatParameters, linear_chain
from dpcomm.train.model import auc, check_outputs, evaluate, load_model, losses, mlp


def test_auc_equals_scikit_learns_ties_included():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    scores, labels = np.round(rng.normal(size=999), 1), rng.integers(0, 2, 999)
    assert auc(scores, labels) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert np.isnan(auc(scores, np.zeros(999)))


@pytest.mark.parametrize("classes", [2, 3])
def test_any_number_of_ranks_measures_the_same(tiny, classes):
    data = shards.load(tiny, "test")
    torch.manual_seed(0)
    module = mlp(data.features, classes, (5,))
    rows = torch.from_numpy(data.rows().copy())
    with torch.no_grad():
        outputs = module(rows[:, :-1])
    chosen = (outputs[:, 0] > 0) if classes == 2 else outputs.argmax(1)
    expected = float((chosen.long() == rows[:, -1].long()).float().mean())
    alone, *_ = results(run_threads(1, lambda comm: evaluate(comm, module, data)))
    assert alone["accuracy"] == pytest.approx(expected)
    assert alone["majority"] == max(rows[:, -1].mean(), 1 - rows[:, -1].mean())
    for size in (3, 8):
        assert results(run_threads(size, lambda c: evaluate(c, module, data))) == [alone] * size


def test_parts_that_are_kept_in_eval_mode_stay_in_it(tiny):
    data = shards.load(tiny, "test")
    module = nn.Sequential(
        nn.Sequential(nn.Linear(data.features, 4), nn.Dropout()), nn.Linear(4, 1)
    )
    module[0].eval()
    before = [part.training for part in module.modules()]
    results(run_threads(1, lambda comm: evaluate(comm, module, data)))
    assert [part.training for part in module.modules()] == before
    rows = torch.from_numpy(data.rows()[:4].copy())
    clipped = ClippedGradient(module, FlatParameters(module), losses, 1.0)
    clipped(rows[:, :-1], rows[:, -1])
    assert [part.training for part in module.modules()] == before


def test_losses_are_those_of_each_sample():
    labels = torch.tensor([0.0, 1.0, 1.0])
    logits = torch.tensor([[-1.0], [2.0], [0.5]])
    two = torch.cat([torch.zeros(3, 1), logits], dim=1)
    torch.testing.assert_close(losses(logits, labels), losses(two, labels))


def test_shares_are_a_partition():
    for size in (1, 2, 3, 8):
        shares = [share(1000, rank, size) for rank in range(size)]
        assert [begin for begin, _ in shares] == [0, *(end for _, end in shares[:-1])]
        assert shares[-1][1] == 1000


def test_a_users_model_is_taken_and_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_of_test.py").write_text(
        "from torch import nn\n"
        "def good(features, classes): return nn.Linear(features, 1)\n"
        "def bad(features, classes): return 3\n"
        "def broken(features, classes): return nn.linear\n"
    )
    check_outputs(load_model("mine_of_test:good", 6, 2), 6, 2)
    with pytest.raises(UsageError, match="made a int, not a torch module"):
        load_model("mine_of_test:bad", 6, 2)
    with pytest.raises(AttributeError, match="no attribute 'linear'"):  # theirs, with its trace
        load_model("mine_of_test:broken", 6, 2)
    with pytest.raises(UsageError, match="no attribute 'ugly'"):
        load_model("mine_of_test:ugly", 6, 2)
    with pytest.raises(UsageError, match="No module named 'theirs_of_test'"):
        load_model("theirs_of_test:good", 6, 2)
    with pytest.raises(UsageError, match=r"into \[2, 4\]: 2 classes need \[2, 1\] logits"):
        check_outputs(nn.Linear(6, 4), 6, 2)


def test_a_chain_longer_than_the_native_step_takes_goes_through_torch():
    layers = [nn.Linear(2, 2) for _ in range(65)]
    assert linear_chain(nn.Sequential(*layers)) is None
    chain = linear_chain(nn.Sequential(*layers[:64]))
    Mlp(chain, "cross_entropy")
    with pytest.raises(UsageError):
        Mlp([*chain, chain[0]], "cross_entropy")
