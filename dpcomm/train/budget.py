"""What a run may spend: its plan and its ledger, and what these let through."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import numpy as np

from dpcomm import accounting
from dpcomm._core import UsageError
from dpcomm.data.shards import Dataset
from dpcomm.privacy.ledger import Ledger, Toll
from dpcomm.privacy.plan import SECURE, UNSAFE, Plan, check_same_plan, default_delta
from dpcomm.train.checkpoint import Checkpoint
from dpcomm.train.options import Options

_HEARTBEAT = 1.0  # seconds


class Budget:
    """One run's, of so many `steps`. Every rank makes one; rank 0's holds the ledger.

    plan: None for a run without privacy, which pays nothing.
    run: the ledger's name of it, which a resumed run keeps.

    Constructing is collective. Raises UsageError for options that make no plan, and MismatchError
    where the ranks' plans differ.
    """

    def __init__(self, comm: Any, options: Options, data: Dataset, steps: int) -> None:
        self._comm, self._options, self._data = comm, options, data
        self.plan = self._make_plan(steps)
        check_same_plan(self.plan, comm)
        self.run = secrets.token_hex(8)
        self.ledger = Ledger(options.ledger) if self.plan and comm.rank == 0 else None

    def _make_plan(self, steps: int) -> Plan | None:
        options, records = self._options, self._data.records
        if not options.private:
            return None
        delta = options.delta or default_delta(records)
        manifest = json.dumps(self._data.manifest, sort_keys=True).encode()
        plan = Plan(
            records=records,
            sample_rate=options.sample_rate,
            steps=steps,
            clip_norm=options.clip_norm,
            noise_multiplier=options.noise_multiplier or 1.0,
            delta=delta,
            clipping=options.clipping,
            adaptive=options.adaptive(records) if options.clipping == "adaptive" else None,
            truncated_batch_size=options.truncated_batch_size,
            noise=SECURE if options.unsafe_seed is None else UNSAFE,
            accountant=options.accountant,
            dataset=hashlib.sha256(manifest).hexdigest()[:16],
        )
        if options.noise_multiplier:
            return plan
        target = options.target_epsilon or 0.0
        # Seconds of work, on one rank: ranks that share cores would wait for each other's.
        noise_multiplier = _from_rank_0(
            self._comm,
            lambda: accounting.noise_multiplier(
                target, plan.sample_rate, plan.steps, plan.delta, plan.accountant,
                truncated_batch_size=plan.truncated_batch_size, records=records,
            ),
        )  # fmt: skip
        return replace(plan, noise_multiplier=noise_multiplier)

    def resume(self, saved: Checkpoint) -> None:
        """Goes on with the checkpoint's run. Collective.

        Raises UsageError where it was trained by another plan, on other data, or with steps that
        this ledger does not hold.
        """
        path, plan = self._options.checkpoint, self.plan
        if (saved.plan is None) != (plan is None):
            trained, fix = ("without", "add") if plan else ("with", "drop")
            raise UsageError(
                f"--resume: {path} was trained {trained} privacy: {fix} --non-private, or name "
                "another --checkpoint"
            )
        if saved.plan and plan:
            for name in ("records", "dataset", "neighbouring"):
                here, there = getattr(plan, name), saved.plan[name]
                if here != there:
                    raise UsageError(
                        f"--resume: {name} is {here}, but {there} in {path}: resume on the data "
                        "that it was trained on"
                    )
            self._refuse_unpaid(saved)
        self.run = saved.run

    def _refuse_unpaid(self, saved: Checkpoint) -> None:
        """Each step of the checkpoint was paid for before it was taken, in its own ledger."""
        paid = _from_rank_0(self._comm, lambda: self.ledger.paid(saved.run) if self.ledger else 0)
        if paid < saved.step:
            raise UsageError(
                f"--resume: {self._options.checkpoint} has taken {saved.step} steps, but the "
                f"ledger {self._options.ledger} holds {paid:.0f} of them, so that ε would be told "
                f"too small: give the ledger that it was trained with, --ledger {saved.ledger}, "
                "restored where it was lost"
            )

    def launch(self, left: int, key_hash: str) -> int:
        """Announces a launch of the `left` steps; how many of them may be taken. Collective."""
        if self.plan is None:
            return left
        plan, target = self.plan, self._options.target_epsilon

        def announce() -> int:
            assert self.ledger is not None
            for spent in self._data.ledger:
                self.ledger.release(spent["epsilon"], spent["delta"], spent["what"])
            self.ledger.launch(self.run, plan, self._comm.size, key_hash)
            if target is None or not left:
                return left
            return self.ledger.affordable(replace(plan, steps=left), target, self.run)

        return int(_from_rank_0(self._comm, announce))

    def toll(self, steps: int) -> Toll | None:
        """What each of the launch's steps passes, if they are private."""
        return Toll(self._comm, self.ledger, self.plan, steps) if self.plan else None

    def spent(self) -> float | None:
        """The ε of this run by the ledger, on rank 0; None where nothing is promised."""
        return self._epsilon(self.run)

    def spent_in_all(self) -> float | None:
        """The ε of all that the ledger holds, likewise."""
        return self._epsilon()

    def _epsilon(self, *run: str) -> float | None:
        if not self.plan or not self.ledger:
            return None
        epsilon = self.ledger.epsilon(self.plan.delta, self.plan.accountant, *run)
        return epsilon if math.isfinite(epsilon) else None


def _from_rank_0(comm: Any, compute: Callable[[], float]) -> float:
    """Rank 0's result on every rank: what is costly, or only rank 0 can know.

    Accounting can take longer than a collective may: each second rank 0 says that it is there.
    """
    pool = ThreadPoolExecutor(1)
    pending = pool.submit(compute if comm.rank == 0 else float)
    said = np.zeros(2)
    while not said[0]:
        done = bool(wait([pending], _HEARTBEAT).done)
        answer = [done, pending.result() if done else 0.0]
        said = comm.broadcast(np.array(answer, np.float64))
    pool.shutdown(wait=False)
    return float(said[1])
