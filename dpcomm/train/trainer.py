"""Training: sample, clip, pay, combine with noise, update."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import secrets
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dpcomm import accounting, launch
from dpcomm._core import UsageError
from dpcomm.data import shards
from dpcomm.privacy.clipping import ClipRule
from dpcomm.privacy.ledger import Ledger, Toll
from dpcomm.privacy.optimizer import Adam, Sgd, ShardedOptimizer
from dpcomm.privacy.plan import SECURE, UNSAFE, Plan, check_same_plan, default_delta
from dpcomm.privacy.sampling import share
from dpcomm.privacy.step import PrivateStep, shared_key
from dpcomm.torch import FlatParameters
from dpcomm.train import checkpoint
from dpcomm.train.checkpoint import Checkpoint
from dpcomm.train.metrics import Best, Measured, Metrics, best_of
from dpcomm.train.model import check_outputs, evaluate, load_model, mlp
from dpcomm.train.options import DATASETS, Options
from dpcomm.train.schedule import learning_rates
from dpcomm.train.step import Batches, Step, training_step

logger = logging.getLogger("dpcomm")

_HEARTBEAT = 1.0  # seconds


@dataclass(frozen=True)
class Summary:
    """What a run says of itself. Nothing in it but the test metrics is computed from records."""

    dataset: str
    ranks: int
    steps: int
    records: int
    sample_rate: float
    noise_multiplier: float
    clip_norm: float | None  # an adaptive one's last
    epsilon: float | None  # of this model; None where nothing is promised
    epsilon_of_ledger: float | None  # of all that the ledger holds
    warning: str | None  # what the data's own preparation left outside of ε
    delta: float | None
    accuracy: float
    auc: float | None
    majority: float  # accuracy of always naming the test records' most frequent class
    epoch_seconds: float
    step_us: float
    parameters: int
    best_step: int  # of the evaluation with the highest AUC or accuracy, whose checkpoint is kept
    best_quality: float  # the AUC of two classes, else the accuracy
    key_hash: str | None
    plan: dict[str, Any] | None
    checkpoint: str
    best_checkpoint: str
    metrics: str
    ledger: str | None


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
        torch.set_num_threads(options.threads or max(1, _cores() // comm.size))
        self.data, self.test = self._load("train", train), self._load("test", test)
        self.model = self._make_model()
        self.parameters = FlatParameters(self.model, lambda size: comm.empty(size, torch.float32))
        comm.broadcast(self.parameters.values.detach())
        steps = options.steps or round((options.epochs or 0) / options.sample_rate)
        self.steps = max(1, steps)
        self.plan = self._make_plan()
        check_same_plan(self.plan, comm)
        self.run, self.step = secrets.token_hex(8), 0
        self.ledger = Ledger(options.ledger) if self.plan and self._speaks else None
        self._combine = self._make_step()
        self.optimizer = ShardedOptimizer(
            self._combine,
            self.parameters.gradient,
            self.parameters.values.detach(),
            _optimizer(options),
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
        toll = Toll(self.comm, self.ledger, self.plan, left) if self.plan else None
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
        epsilon = None
        if self.plan and self.ledger:
            plan = self.plan
            epsilon = _promised(self.ledger.epsilon(plan.delta, plan.accountant, self.run))
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

    def _load(self, split: str, data: shards.Dataset | None) -> shards.Dataset:
        """Maps a split that is not in memory. Of the ranks that cannot, the first says so, and each
        ends by itself with code 2: were the job ended by one, the others would repeat it."""
        try:
            data = data or shards.load(self.options.data, split)
            fault = self._misfit(data)
        except shards.ShardError as error:
            fault = f"{error}{self._made_by()}"
        rank = np.array([self.comm.rank if fault else self.comm.size], np.float64)
        first = int(self.comm.all_reduce(rank, op="min")[0])
        if fault and first == self.comm.rank:
            who = launch.who(self.comm.rank, self.comm.size)
            print(f"dpcomm: {who}: --data {self.options.data}: {fault}", file=sys.stderr)
        if data is None or first < self.comm.size:
            raise SystemExit(launch.USAGE)
        return data

    def _misfit(self, data: shards.Dataset) -> str:
        """Why the records cannot be trained on, nothing where they can."""
        privacy = data.manifest["privacy"]
        if not self.options.private or privacy["records_per_unit"] == 1:
            return ""
        return (
            f"up to {privacy['records_per_unit']} records speak of one {privacy['unit']}, but "
            "clipping bounds one record: prepare with records_per_unit = 1 in the schema"
        )

    def _made_by(self) -> str:
        """The commands that make a data set of ours where it is looked for; nothing of others'."""
        name, place = self.options.dataset, self.options.data
        if name not in DATASETS or place != Path("data") / name:
            return ""
        source = name.removesuffix("-nine")
        return (
            f"\n  fix: python -m dpcomm.data.{source} data/raw/{source} && "
            f"python -m dpcomm.data.prepare data/raw/{source} {place} --schema {name}"
        )

    def _make_model(self) -> torch.nn.Module:
        options, features, classes = self.options, self.data.features, len(self.data.classes)
        torch.manual_seed(options.seed)
        if options.model:
            module = load_model(options.model, features, classes)
        else:
            module = mlp(features, classes, options.hidden)
        check_outputs(module, features, classes)
        return module

    def _make_plan(self) -> Plan | None:
        options, records = self.options, self.data.records
        if not options.private:
            return None
        delta = options.delta or default_delta(records)
        manifest = json.dumps(self.data.manifest, sort_keys=True).encode()
        plan = Plan(
            records=records,
            sample_rate=options.sample_rate,
            steps=self.steps,
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
        noise_multiplier = self._from_rank_0(
            lambda: accounting.noise_multiplier(
                target, plan.sample_rate, plan.steps, plan.delta, plan.accountant,
                truncated_batch_size=plan.truncated_batch_size, records=records,
            )
        )  # fmt: skip
        return replace(plan, noise_multiplier=noise_multiplier)

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
        path = self.options.checkpoint
        if (saved.plan is None) != (self.plan is None):
            trained, fix = ("without", "add") if self.plan else ("with", "drop")
            raise UsageError(
                f"--resume: {path} was trained {trained} privacy: {fix} --non-private, or name "
                "another --checkpoint"
            )
        if saved.plan and self.plan:
            for name in ("records", "dataset", "neighbouring"):
                here, there = getattr(self.plan, name), saved.plan[name]
                if here != there:
                    raise UsageError(
                        f"--resume: {name} is {here}, but {there} in {path}: resume on the data "
                        "that it was trained on"
                    )
            self._refuse_unpaid(saved)
        try:
            self.model.load_state_dict(saved.model)
            self.optimizer.adopt()
            self.optimizer.load_state_dict(saved.optimizer)
        except (RuntimeError, ValueError) as error:
            raise UsageError(
                f"--resume: {path} does not fit the model or the optimizer: {error}: give the "
                "--model, --hidden and --optimizer that it was trained with"
            ) from error
        self.run, self.step = saved.run, saved.step
        if self.plan and self.plan.adaptive and saved.clip_norm:
            self._combine.rule = ClipRule((saved.clip_norm,))

    def _refuse_unpaid(self, saved: Checkpoint) -> None:
        """Each step of the checkpoint was paid for before it was taken, in its own ledger."""
        paid = self._from_rank_0(lambda: self.ledger.paid(saved.run) if self.ledger else 0)
        if paid < saved.step:
            raise UsageError(
                f"--resume: {self.options.checkpoint} has taken {saved.step} steps, but the ledger "
                f"{self.options.ledger} holds {paid:.0f} of them, so that ε would be told too "
                f"small: give the ledger that it was trained with, --ledger {saved.ledger}, "
                "restored where it was lost"
            )

    def _open_launch(self) -> int:
        """Announces the launch; how many steps it may take."""
        left = max(0, self.steps - self.step)
        if self.plan is None:
            return left
        plan, target = self.plan, self.options.target_epsilon

        def launch() -> int:
            assert self.ledger is not None
            for spent in self.data.ledger:
                self.ledger.release(spent["epsilon"], spent["delta"], spent["what"])
            self.ledger.launch(self.run, plan, self.comm.size, self._combine.key_hash)
            if target is None or not left:
                return left
            return self.ledger.affordable(replace(plan, steps=left), target, self.run)

        affordable = int(self._from_rank_0(launch))
        self._say(plan.explain())
        if self.data.warning:
            self._say(f"Warning: {self.data.warning}.")
        if affordable < left:
            self._say(f"ε = {target} is spent after {affordable} of the {left} steps that are left")
        return affordable

    def _save(self, path: Path | None = None) -> None:
        optimizer = self.optimizer.state_dict()  # its parts lie with all ranks
        if self._speaks:
            Checkpoint(
                run=self.run,
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
        plan, ledger = self.plan, self.ledger
        epsilon = total = None
        if plan and ledger:
            epsilon = _promised(ledger.epsilon(plan.delta, plan.accountant, self.run))
            total = _promised(ledger.epsilon(plan.delta, plan.accountant))
        return Summary(
            dataset=self.options.dataset,
            ranks=self.comm.size,
            steps=self.step,
            records=self.data.records,
            sample_rate=self.options.sample_rate,
            noise_multiplier=plan.noise_multiplier if plan else 0.0,
            clip_norm=self._clip_norm(),
            epsilon=epsilon,
            epsilon_of_ledger=total,
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

    def _from_rank_0(self, compute: Callable[[], float]) -> float:
        """Rank 0's result on every rank: what is costly, or only rank 0 can know.

        Accounting can take longer than a collective may: each second rank 0 says that it is there.
        """
        pool = ThreadPoolExecutor(1)
        pending = pool.submit(compute if self._speaks else float)
        said = np.zeros(2)
        while not said[0]:
            done = bool(wait([pending], _HEARTBEAT).done)
            answer = [done, pending.result() if done else 0.0]
            said = self.comm.broadcast(np.array(answer, np.float64))
        pool.shutdown(wait=False)
        return float(said[1])

    def _say(self, text: str) -> None:
        if self._speaks:
            print(text, flush=True)


def save_summary(summary: Summary, path: Any) -> None:
    """Writes the record as JSON, whole or not at all. What is infinite or unknown is null."""
    record = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(summary).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(new, path)


def _optimizer(options: Options) -> Sgd | Adam:
    return {"adam": Adam, "sgd": Sgd}[options.optimizer](lr=options.lr)


def _promised(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _cores() -> int:
    return len(os.sched_getaffinity(0))
