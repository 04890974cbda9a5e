"""What was spent, on disk before it is released.

A ledger is a file of JSON lines that only grows. The rule that makes its ε never less than what was
spent: a line is on the disk, synced, before the first update that it pays for leaves the job. Steps
are paid for ahead, `AHEAD` at a time, so that a sync does not slow each of them; whatever a job had
paid for when it died counts as spent, and so does a last line that was torn in the writing.

Lines, by their `kind`:

- `launch`: a job begins; the run that it starts or resumes, ranks, plan, the hash of its noise key,
  how many steps it pays ahead;
- `steps`: `count` steps at `sample_rate` and `noise_multiplier`, and of truncated batches
  `truncated_batch_size` and `records`;
- `release`: another (ε, δ)-private release from the same records, as preparation may make.

A run is one model's training, over as many launches as it takes; a file may hold several. What one
model costs is its run's steps and all releases; what all of them cost together is the whole file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dpcomm import accounting
from dpcomm._core import UsageError
from dpcomm.accounting import Release, Steps
from dpcomm.privacy.plan import UNSAFE, Plan

_KINDS = ("launch", "steps", "release")
AHEAD = 32  # steps paid for at once: at most so many are counted in vain by a job that dies


class Ledger:
    """One job's hold on a ledger file; made where there is none. Rank 0 alone has one.

    Raises UsageError for a file that another job holds, or that is damaged before its last line.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Held, and locked, while the job lives. Unbuffered: what failed is not written later.
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"ledger {self.path} is in use by another job: wait for it, or give this one "
                "its own --ledger if it trains on other records"
            ) from error
        _sync_folder(self.path.parent)
        self._file.seek(0)
        self.lines = self._recover(self._file.read())

    def _recover(self, text: bytes) -> list[dict[str, Any]]:
        *whole, last = text.split(b"\n")
        lines = []
        for number, line in enumerate(whole, 1):
            try:
                lines.append(json.loads(line))
            except ValueError as error:
                raise UsageError(
                    f"ledger {self.path}, line {number} is damaged, so what was spent is unknown: "
                    "restore the file; without it, nothing more may be released from these records"
                ) from error
            kind = lines[-1].get("kind") if isinstance(lines[-1], dict) else None
            if kind not in _KINDS:
                raise UsageError(
                    f"ledger {self.path}, line {number} has kind {kind!r}, whose cost is unknown "
                    f"here, where the kinds are {', '.join(_KINDS)}: use the dpcomm that wrote it"
                )
        if last:
            # The job died in this write. Nothing that it was to pay for can have been released,
            # but the file alone does not show how far it came: it counts in full.
            os.ftruncate(self._file.fileno(), len(text) - len(last))
            for line in reversed(lines):
                if line["kind"] == "launch":
                    torn = _steps_of(line["plan"] | {"count": line["ahead"]})
                    self._append(lines, _steps_line(torn) | {"torn": last.decode(errors="replace")})
                    break
        return lines

    def launch(self, run: str, plan: Plan, ranks: int, key_hash: str) -> None:
        """Notes that a job starts or resumes `run`.

        Raises UsageError for a key that drew noise before.
        """
        if any(line["kind"] == "launch" and line["key_hash"] == key_hash for line in self.lines):
            raise UsageError(
                f"ledger {self.path}: noise was drawn before from the key with hash {key_hash}; "
                "drawn again it would cancel out. Fix: drop --unsafe-seed, or give another"
            )
        about = {
            "run": run,
            "ranks": ranks,
            "key_hash": key_hash,
            "ahead": AHEAD,
            "plan": plan.to_dict(),
        }
        self._append(self.lines, {"kind": "launch"} | about)

    def pay(self, plan: Plan, count: int) -> None:
        """Charges `count` steps of the plan; on return they may be released."""
        self._append(self.lines, _steps_line(plan.spending(count)))

    def release(self, epsilon: float, delta: float, what: str) -> None:
        """Charges another release from the same records, once for each `what`."""
        Release(epsilon, delta)
        if any(line["kind"] == "release" and line["what"] == what for line in self.lines):
            return
        line = {"kind": "release", "epsilon": epsilon, "delta": delta, "what": what}
        self._append(self.lines, line)

    def spent(self, run: str | None = None) -> list[Steps | Release]:
        """Everything charged so far; with `run`, without the steps of other runs."""
        spent: list[Steps | Release] = []
        of = None
        for line in self.lines:
            if line["kind"] == "launch":
                of = line["run"]
            elif line["kind"] == "release":
                spent.append(Release(line["epsilon"], line["delta"]))
            elif run in (None, of):
                spent.append(_steps_of(line))
        return spent

    def paid(self, run: str) -> int:
        """Steps that were paid for by the run."""
        return sum(spent.count for spent in self.spent(run) if isinstance(spent, Steps))

    def unsafe(self, run: str | None = None) -> bool:
        """Whether a seed gave some of the noise."""
        launches = [line for line in self.lines if line["kind"] == "launch"]
        return any(
            line["plan"]["noise"] == UNSAFE and run in (None, line["run"]) for line in launches
        )

    def epsilon(self, delta: float, accountant: str = "pld", run: str | None = None) -> float:
        """ε at `delta` of what `spent` gives; infinite where a seed gave some of the noise."""
        if self.unsafe(run):
            return math.inf
        return accounting.composed_epsilon(self.spent(run), delta, accountant)

    def affordable(self, plan: Plan, target_epsilon: float, run: str | None = None) -> int:
        """How many more steps of the plan, at most all of them, keep ε within the target."""
        spent = self.spent(run)

        def affords(count: int) -> bool:
            more = [*spent, plan.spending(count)]
            epsilon = accounting.composed_epsilon(more, plan.delta, plan.accountant)
            return epsilon <= target_epsilon

        if affords(plan.steps):
            return plan.steps
        enough, too_many = 0, plan.steps
        while too_many - enough > 1:
            middle = (enough + too_many) // 2
            enough, too_many = (middle, too_many) if affords(middle) else (enough, middle)
        return enough

    def close(self) -> None:
        """Lets another job have the file."""
        self._file.close()

    def _append(self, lines: list[dict[str, Any]], line: dict[str, Any]) -> None:
        text = json.dumps(line).encode() + b"\n"
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), end)  # no half of a line before a later one
            raise
        lines.append(line)


class Toll:
    """Lets no step's update be released before it is paid for. Collective: every rank has one.

    `steps` are as many as there may be; None sets no end.
    """

    def __init__(
        self, comm: Any, ledger: Ledger | None, plan: Plan, steps: int | None = None
    ) -> None:
        if (comm.rank == 0) != (ledger is not None):
            raise UsageError(f"rank {comm.rank}: rank 0, and only rank 0, brings a ledger")
        self._comm, self._ledger, self._plan = comm, ledger, plan
        self._planned = steps
        self._paid = 0

    def pay(self) -> None:
        """To be called before each step's sums are combined; a synced write each `AHEAD` steps."""
        if self._paid == 0:
            if self._planned == 0:
                raise UsageError("more steps than were announced: begin a new launch")
            count = AHEAD if self._planned is None else min(AHEAD, self._planned)
            if self._ledger is not None:
                self._ledger.pay(self._plan, count)
            self._comm.barrier()  # nobody goes on before rank 0's write is durable
            self._paid = count
            if self._planned is not None:
                self._planned -= count
        self._paid -= 1


def _steps_line(steps: Steps) -> dict[str, Any]:
    told = {name: value for name, value in asdict(steps).items() if value is not None}
    return {"kind": "steps"} | told


def _steps_of(line: dict[str, Any]) -> Steps:
    truncated = line.get("truncated_batch_size")
    records = None if truncated is None else line["records"]
    return Steps(line["sample_rate"], line["noise_multiplier"], line["count"], truncated, records)


def _sync_folder(folder: Path) -> None:
    # A new file's name is durable only once its folder is.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
