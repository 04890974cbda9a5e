"""The tuner: a model that fits, a table that follows it, and what it must never choose."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from groups import results, run_threads

from dpcomm import _core, arrays, tuner
from dpcomm.tuner import Timing, Tuning

ALPHA, BETA, GAMMA = 2e-6, 3e-10, 1e-10
SIZES = (8, 4096, 1 << 20, 1 << 24)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def ideal(names=("ring", "recursive_doubling"), ranks=8) -> Tuning:
    """A machine that obeys the model to the last digit."""
    bare = Tuning(
        version="1",
        host="a17",
        transport="mpi",
        ranks=ranks,
        hosts=(0,) * ranks,
        deterministic=False,
        alpha=ALPHA,
        beta=BETA,
        gamma=dict.fromkeys(arrays.BYTES, GAMMA),
        timings=(),
        refused=(),
        untuned={"all_reduce": ("ring",) * len(tuner._LADDER)},
    )
    timings = [
        Timing("all_reduce", name, size, bare.model("all_reduce", name, size))
        for name in names
        for size in SIZES
    ]
    return replace(bare, timings=tuple(timings))


def test_the_fit_finds_the_machine_that_made_the_timings():
    known = ideal()
    found = tuner._fitted(replace(known, alpha=1.0, beta=1.0), known.timings)
    assert found.alpha == pytest.approx(ALPHA, rel=1e-6)
    assert found.beta == pytest.approx(BETA, rel=1e-6)


def test_few_rounds_win_when_short_and_few_bytes_when_long():
    (short, first), (_, last) = ideal().choices("all_reduce", "float32")
    assert (first, last) == ("recursive_doubling", "ring")
    assert 1 << 10 < short < 1 << 20


def test_a_type_that_is_dear_to_add_is_judged_by_its_own_additions():
    known = ideal(("ring", "naive"), ranks=2)
    dear = replace(known, gamma={**known.gamma, "float16": 1e-7})
    assert dear.estimate("all_reduce", "naive", 4096, "float16") > dear.estimate(
        "all_reduce", "naive", 4096, "float32"
    )
    assert dear.choices("all_reduce", "float16")[0][0] < dear.choices("all_reduce", "float32")[0][0]


def test_a_measurement_corrects_the_model():
    known = ideal()
    slow = [
        replace(t, seconds=10 * t.seconds) if t.algorithm == "recursive_doubling" else t
        for t in known.timings
    ]
    assert replace(known, timings=tuple(slow)).choices("all_reduce", "float32") == [
        (tuner._LADDER[-1], "ring")
    ]


def test_what_is_hardly_faster_does_not_replace_the_untuned_choice():
    known = ideal(("ring",))  # whose messages, bytes and additions are those of round_robin
    rival = [replace(t, algorithm="round_robin", seconds=0.95 * t.seconds) for t in known.timings]
    for name in ("ring", "round_robin"):
        own = replace(
            known,
            timings=(*known.timings, *rival),
            untuned={"all_reduce": (name,) * len(tuner._LADDER)},
        )
        assert {choice for _, choice in own.choices("all_reduce", "float32")} == {name}


def test_tuning_keeps_the_bits_of_a_reduction_in_the_order_of_ranks():
    """Over shared memory the untuned sum is in the order of ranks, and so is any tuned one."""

    def body(comm):
        parts = [np.random.default_rng([comm.rank, n]).normal(size=n) for n in (3, 5000, 70_000)]
        before = [comm.all_reduce(part.copy()).tobytes() for part in parts]
        found = comm.tune()
        names = {name for op in ("all_reduce", "reduce_scatter") for _, name in
                 found.choices(op, "float64")}  # fmt: skip
        assert all(_core.adds_in_order_of_ranks(name) for name in names)
        return before == [comm.all_reduce(part.copy()).tobytes() for part in parts]

    assert results(run_threads(3, body)) == [True] * 3


def test_every_algorithm_in_the_order_of_ranks_gives_the_same_bits():
    def body(comm):
        part = np.random.default_rng(comm.rank).normal(size=5001).astype(np.float32)
        names = filter(_core.adds_in_order_of_ranks, _core.algorithms())
        return {comm.all_reduce(part.copy(), algo=name).tobytes() for name in names}

    assert all(len(bits) == 1 for bits in results(run_threads(5, body)))


def test_a_wrong_algorithm_is_refused_before_it_is_timed(monkeypatch):
    right = tuner._is_right
    monkeypatch.setattr(
        tuner, "_is_right", lambda c, op, name: name != "naive" and right(c, op, name)
    )
    (found, _) = results(run_threads(2, lambda comm: tuner.find(comm, fresh=True)))
    assert "all_reduce naive" in found.refused
    assert all(timing.algorithm != "naive" for timing in found.timings)


def test_the_cache_is_read_again_unless_it_is_of_another_build_or_fresh(tmp_path):
    def body(comm):
        first = tuner.find(comm)
        again = tuner.find(comm)
        fresh = tuner.find(comm, fresh=True)
        return first == again, first.timings == fresh.timings

    assert results(run_threads(2, body)) == [(True, False)] * 2
    (path,) = (tmp_path / "dpcomm" / "tuning").iterdir()
    stale = {**json.loads(path.read_text()), "version": "0.0.0", "alpha": 77.0}
    path.write_text(json.dumps(stale))
    assert all(found.alpha != 77.0 for found in results(run_threads(2, tuner.find)))
    path.write_text("{")
    assert all(found.alpha != 77.0 for found in results(run_threads(2, tuner.find)))


def test_the_explanation_names_the_machine_and_every_line_of_the_table():
    known = ideal()
    text = tuner.explain(known, "all_reduce")
    assert "α = 2.00 µs" in text
    for up_to, name in known.choices("all_reduce", "float32")[:-1]:
        assert any(str(up_to) in line and name in line for line in text.splitlines())


def test_the_explanation_gives_each_choice_its_own_time():
    known = ideal(("ring",))
    faster = [replace(t, algorithm="tree", seconds=0.95 * t.seconds) for t in known.timings]
    known = replace(known, timings=(*known.timings, *faster))  # by too little to be chosen
    lines = [line for line in tuner.explain(known, "all_reduce").splitlines() if "; next" in line]
    slower = 0
    for line in lines:
        name, size, own, other, least = re.search(
            r"B  (\w+) +at (\d+) B: ([\d.]+) µs; next (\w+), ([\d.]+)", line
        ).groups()
        assert float(own) == round(1e6 * known.estimate("all_reduce", name, int(size)), 1)
        assert float(least) == round(1e6 * known.estimate("all_reduce", other, int(size)), 1)
        slower += float(own) > float(least)
    assert slower
