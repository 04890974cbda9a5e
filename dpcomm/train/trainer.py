"""Training: sample, clip, pay, combine with noise, update."""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dpcomm import accounting
from dpcomm.data import shards
from dpcomm.privacy.clipping import ClipRule
from dpcomm.privacy.ledger import Toll
from dpcomm.privacy.optimizer import Adam, Sgd, ShardedOptimizer
from dpcomm.privacy.sampling import share
from dpcomm.privacy.step import PrivateStep, shared_key
from dpcomm.torch import FlatParameters
from dpcomm.train import checkpoint, records
from dpcomm.train.budget import Budget
from dpcomm.train.checkpoint import Checkpoint
from dpcomm.train.metrics import Best, Measured, Metrics, Summary, best_of
from dpcomm.train.model import evaluate, make_model
from dpcomm.train.options import Options
from dpcomm.train.schedule import learning_rates
from dpcomm.train.step import Batches, Step, training_step

logger = logging.getLogger("dpcomm")


class Trainer:
    """One job's part in a training run. Every rank makes one, with the same options.

    Constructing reads the data's manifest, agrees on the plan, opens the ledger and, to resume, the
    checkpoint. Raises UsageError where options, data and checkpoint do not fit each other, and
    MismatchError where the ranks do not. Records in memory, `train` and `test`, take the place of
    the folder that the options name.
    """

    def __init__(
        self,
        comm: Any,
        options: Options,
        train: shards.Dataset | None = None,
        test: shards.Dataset | None = None,
    ) -> None:
        self.comm, self.options = comm, options
        self._speaks = comm.rank == 0
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(options.threads or max(1, cores // comm.size))
        self.data = records.load(comm, options, "train", train)
        self.test = records.load(comm, options, "test", test)
        self.model = make_model(options, self.data.features, len(self.data.classes))
        self.parameters = FlatParameters(self.model, lambda size: comm.empty(size, torch.float32))
        comm.broadcast(self.parameters.values.detach())
        steps = options.steps or round((options.epochs or 0) / options.sample_rate)
        self.steps = max(1, steps)
        self.budget = Budget(comm, options, self.data, self.steps)
        self.plan, self.step = self.budget.plan, 0
        self._combine = self._make_step()
        self.optimizer = ShardedOptimizer(
            self._combine,
            self.parameters.gradient,
            self.parameters.values.detach(),
            {"adam": Adam, "sgd": Sgd}[options.optimizer](lr=options.lr),
        )
        if options.resume:
            self._resume(checkpoint.load(comm, options.checkpoint))
        self._sampling_key = shared_key(comm, options.unsafe_seed)
        self._nonfinite = 0
        rates = (options.lr_schedule, options.lr, self.steps, options.warmup_steps)
        self._rates = None if rates[0] == "constant" and not rates[3] else learning_rates(*rates)

    def train(self) -> Summary:
        """Takes the steps that are left and affordable, then evaluates."""
        left = self._open_launch()
        begin, end = share(self.data.records, self.comm.rank, self.comm.size)
        most = self.plan.truncated_batch_size if self.plan else None
        batches = Batches(self.data, self._sampling_key, self.options.sample_rate, begin, end, most)
        step = training_step(
            self.model,
            self.parameters,
            batches,
            self.plan is not None,
            self.optimizer,
            torch.get_num_threads(),
        )
        toll = self.budget.toll(left)
        per_epoch = max(1, round(1 / self.options.sample_rate))
        every = self.options.evaluate_every or -(-self.steps // 10)
        if self._speaks:
            self._metrics = Metrics(self.options.metrics, self.step, self.options.tensorboard)
            if not self.options.resume:
                checkpoint.set_aside(self.options.checkpoint)
        self._best = self._best_so_far()
        self._save()
        last, seconds, taken = None, 0.0, 0
        bar = tqdm(total=left, unit="step", disable=not self._speaks, mininterval=0.5)
        while taken < left and not self._best.stale(self.options.patience):
            started = time.perf_counter()
            self._take_step(step, toll)
            if taken:  # the first one touches memory anew
                seconds += time.perf_counter() - started
            taken += 1
            bar.update()
            if self.step % per_epoch == 0:
                self._save()
            if self.step % every == 0 or taken == left:
                last = self._evaluate(seconds, per_epoch, bar)
        last = last or self._evaluate(seconds, per_epoch, bar)
        bar.close()
        self._save()
        return self._summarise(last, seconds / (taken - 1) if taken > 1 else math.nan, per_epoch)

    def _evaluate(self, seconds: float, per_epoch: int, bar: Any) -> dict[str, float]:
        """Measures the model on the test records, notes it down, and keeps the best. Collective."""
        measured = evaluate(self.comm, self.model, self.test)
        epsilon = self.budget.spent()
        row = Measured(
            step=self.step,
            epoch=self.step / per_epoch,
            epsilon=epsilon,
            accuracy=measured["accuracy"],
            auc=measured.get("auc"),
            seconds=seconds,
        )
        self._best = self._best.after(row)
        if self._speaks:
            self._metrics.add(row)
            told = {} if epsilon is None else {"ε": accounting.show(epsilon)}
            bar.set_postfix(told | {"accuracy": f"{row.accuracy:.4f}"})
        if self._best.step == self.step:
            self._save(checkpoint.best(self.options.checkpoint))
        return measured

    def _best_so_far(self) -> Best:
        """Of a run that goes on, what was measured before; rank 0's file decides."""
        best = best_of(self._metrics.rows) if self._speaks else Best()
        values = np.array([best.step, best.quality, best.since], np.float64)
        step, quality, since = self.comm.broadcast(values)
        return Best(int(step), float(quality), int(since))

    def _take_step(self, step: Step, toll: Toll | None) -> None:
        if toll:
            toll.pay()
        if self._rates:
            self.optimizer.optimizer.lr = self._rates[self.step]
        seen = step(self.step)
        self._combine.adapt(seen)
        self._nonfinite += seen.nonfinite
        self.step += 1

    def _make_step(self) -> PrivateStep:
        options, size = self.options, self.parameters.size
        expected = options.sample_rate * self.data.records
        settings: dict[str, Any] = {"algo": options.algo, "unsafe_seed": options.unsafe_seed}
        if self.plan is None:
            return PrivateStep(self.comm, size, 1.0, 0.0, expected, no_noise=True, **settings)
        plan = self.plan
        rule = plan.rule(self.parameters.layers)
        return PrivateStep(
            self.comm, size, rule, plan.noise_multiplier, expected, adaptive=plan.adaptive,
            **settings,
        )  # fmt: skip

    def _resume(self, saved: Checkpoint) -> None:
        self.budget.resume(saved)
        saved.restore(self.model, self.optimizer, self.options.checkpoint)
        self.step = saved.step
        if self.plan and self.plan.adaptive and saved.clip_norm:
            self._combine.rule = ClipRule((saved.clip_norm,))

    def _open_launch(self) -> int:
        """Announces the launch; how many steps it may take."""
        left = max(0, self.steps - self.step)
        may = self.budget.launch(left, self._combine.key_hash)
        if self.plan:
            self._say(self.plan.explain())
            if self.data.warning:
                self._say(f"Warning: {self.data.warning}.")
        if may < left:
            target = self.options.target_epsilon
            self._say(f"ε = {target} is spent after {may} of the {left} steps that are left")
        return may

    def _save(self, path: Path | None = None) -> None:
        optimizer = self.optimizer.state_dict()  # its parts lie with all ranks
        if self._speaks:
            Checkpoint(
                run=self.budget.run,
                step=self.step,
                model=self.model.state_dict(),
                optimizer={k: torch.as_tensor(v) for k, v in optimizer.items()},
                clip_norm=self._clip_norm(),
                plan=self.plan.to_dict() if self.plan else None,
                ledger=str(self.options.ledger),
            ).save(path or self.options.checkpoint)

    def _clip_norm(self) -> float | None:
        """Of the next step."""
        if self.plan is None:
            return None
        return self._combine.rule.norms[0] if self.plan.adaptive else self.plan.clip_norm

    def _summarise(
        self, measured: dict[str, float], step_seconds: float, per_epoch: int
    ) -> Summary:
        nonfinite = int(self.comm.all_reduce(np.array([self._nonfinite], np.int64))[0])
        if nonfinite and self._speaks:  # not printed: a job's log is kept, and this has no noise
            logger.debug("%d samples with a NaN or infinite gradient were left out", nonfinite)
        plan = self.plan
        return Summary(
            dataset=self.options.dataset,
            ranks=self.comm.size,
            steps=self.step,
            records=self.data.records,
            sample_rate=self.options.sample_rate,
            noise_multiplier=plan.noise_multiplier if plan else 0.0,
            clip_norm=self._clip_norm(),
            epsilon=self.budget.spent(),
            epsilon_of_ledger=self.budget.spent_in_all(),
            warning=(self.data.warning or None) if plan else None,
            delta=plan.delta if plan else None,
            accuracy=measured["accuracy"],
            auc=measured.get("auc"),
            majority=measured["majority"],
            epoch_seconds=step_seconds * per_epoch,
            step_us=step_seconds * 1e6,
            parameters=self.parameters.size,
            best_step=self._best.step,
            best_quality=self._best.quality,
            key_hash=self._combine.key_hash if plan else None,
            plan=plan.to_dict() if plan else None,
            checkpoint=str(self.options.checkpoint),
            best_checkpoint=str(checkpoint.best(self.options.checkpoint)),
            metrics=str(self.options.metrics),
            ledger=str(self.options.ledger) if plan else None,
        )

    def _say(self, text: str) -> None:
        if self._speaks:
            print(text, flush=True)
