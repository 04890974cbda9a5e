"""The command line, and `--config run.toml`, which holds the same names."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpcomm import _core, accounting
from dpcomm._core import UsageError
from dpcomm.privacy.clipping import CLIPPINGS, Adaptive

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Defaults:
    """What suits a data set; every flag overrides.

    Chosen by looking at these data, which are public: on private data, choosing costs privacy that
    no ledger here is charged for.
    """

    target_epsilon: float
    epochs: float
    sample_rate: float
    clip_norm: float
    lr: float
    hidden: tuple[int, ...]


DATASETS = {
    "census": Defaults(3.0, 20, 0.02, 0.3, 0.01, (64,)),
    "pums": Defaults(3.0, 5, 0.005, 0.3, 0.01, (64,)),
    "pums-nine": Defaults(3.0, 5, 0.005, 0.3, 0.01, (64,)),
}
OWN = Defaults(3.0, 10, 0.01, 0.3, 0.01, (64,))  # of data that nobody looked at


SCHEDULES = ("constant", "linear", "cosine", "step")  # of the learning rate: schedule.py


@dataclass(frozen=True)
class Options:
    """A checked command line, defaults filled in."""

    dataset: str
    data: Path
    epochs: float | None
    steps: int | None
    sample_rate: float
    private: bool
    noise_multiplier: float | None
    target_epsilon: float | None
    clip_norm: float
    clipping: str
    target_unclipped_quantile: float
    clipbound_learning_rate: float
    unclipped_num_std: float | None
    truncated_batch_size: int | None
    delta: float | None
    accountant: str
    model: str | None
    hidden: tuple[int, ...]
    optimizer: str
    lr: float
    lr_schedule: str
    warmup_steps: int
    seed: int
    algo: str | None
    transport: str | None
    threads: int | None
    checkpoint: Path
    ledger: Path
    summary: Path
    metrics: Path
    tensorboard: Path | None
    evaluate_every: int | None
    patience: int | None
    resume: bool
    unsafe_seed: int | None

    def adaptive(self, records: int) -> Adaptive:
        """What an adaptive clip norm goes by, of so many records."""
        return Adaptive(
            self.unclipped_num_std or self.sample_rate * records / 20,
            self.target_unclipped_quantile,
            self.clipbound_learning_rate,
        )


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options that `arguments`, or the process's own, ask for.

    A flag beats the file of --config, which beats the data set's defaults. Exits with code 2 on a
    flag that cannot be; raises UsageError for a file that cannot.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    config = parser.parse_args(arguments).config
    if config:
        arguments = _flags_of(parser, Path(config), arguments) + arguments
    args = parser.parse_args(arguments)
    dataset = args.dataset or (args.data.resolve().name if args.data else "census")
    suits = DATASETS.get(dataset, OWN)
    folder = Path("runs") / (dataset if args.private else f"{dataset}-non-private")
    checkpoint = args.checkpoint or folder / "checkpoint.pt"
    calibrated = args.private and args.noise_multiplier is None
    return Options(
        dataset=dataset,
        data=args.data or Path("data") / dataset,
        epochs=args.epochs or (None if args.steps else suits.epochs),
        steps=args.steps,
        sample_rate=args.sample_rate or suits.sample_rate,
        private=args.private,
        noise_multiplier=args.noise_multiplier,
        target_epsilon=(args.target_epsilon or suits.target_epsilon) if calibrated else None,
        clip_norm=args.clip_norm or suits.clip_norm,
        clipping=args.clipping,
        target_unclipped_quantile=args.target_unclipped_quantile,
        clipbound_learning_rate=args.clipbound_learning_rate,
        unclipped_num_std=args.unclipped_num_std,
        truncated_batch_size=args.truncated_batch_size,
        delta=args.delta,
        accountant=args.accountant,
        model=args.model,
        hidden=suits.hidden if args.hidden is None else args.hidden,
        optimizer=args.optimizer,
        lr=args.lr or suits.lr,
        lr_schedule=args.lr_schedule,
        warmup_steps=args.warmup_steps,
        seed=args.seed,
        algo=args.algo,
        transport=args.transport,
        threads=args.threads,
        checkpoint=checkpoint,
        ledger=args.ledger or checkpoint.with_name("ledger.jsonl"),
        summary=args.summary or checkpoint.with_name("summary.json"),
        metrics=args.metrics or checkpoint.with_name("metrics.jsonl"),
        tensorboard=args.tensorboard,
        evaluate_every=args.evaluate_every,
        patience=args.patience,
        resume=args.resume,
        unsafe_seed=args.unsafe_seed,
    )


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        "python -m dpcomm.train",
        description="Private training of a classifier; alone, or under mpirun, torchrun or srun.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("--config", metavar="RUN.TOML", help="flags by their names, without dashes")

    data = p.add_argument_group("data")
    data.add_argument(
        "--dataset",
        type=_name,
        metavar="NAME",
        help=f"{', '.join(DATASETS)}, each with defaults that suit it, or a name of yours; "
        "default: the folder that --data names, or else census",
    )
    data.add_argument("--data", type=Path, help="a prepared folder; default data/NAME")

    length = p.add_argument_group("length (either; a batch is sample rate times records)")
    either = length.add_mutually_exclusive_group()
    either.add_argument("--epochs", type=_positive, help="of 1 / sample rate steps")
    either.add_argument("--steps", type=_count)
    length.add_argument("--sample-rate", type=_rate, help="chance of each record, each step")

    privacy = p.add_argument_group("privacy")
    noise = privacy.add_mutually_exclusive_group()
    noise.add_argument("--target-epsilon", type=_positive, help="finds the noise; stops at it")
    noise.add_argument("--noise-multiplier", type=_positive, help="noise over clip norm")
    noise.add_argument(
        "--non-private",
        dest="private",
        action="store_false",
        help="neither clips nor adds noise: the same model by plain SGD, for comparison",
    )
    privacy.add_argument("--clip-norm", type=_positive)
    privacy.add_argument(
        "--clipping",
        choices=CLIPPINGS,
        default="flat",
        help="by one norm, one a layer, one that follows a private quantile (whose cost is in ε), "
        "or by scaling every gradient",
    )
    privacy.add_argument(
        "--truncated-batch-size",
        type=_count,
        metavar="N",
        help="takes a random N of more, which ε counts (--accountant pld)",
    )
    privacy.add_argument("--delta", type=_rate, help="default: a power of ten below 1 / 2 records")
    privacy.add_argument("--accountant", choices=accounting.ACCOUNTANTS, default="pld")
    privacy.add_argument("--ledger", type=Path, help="default: beside the checkpoint")
    privacy.add_argument("--unsafe-seed", type=int, help="noise from a seed: for tests alone")

    adaptive = p.add_argument_group("adaptive clipping (--clip-norm is the first)")
    adaptive.add_argument(
        "--target-unclipped-quantile",
        type=_share,
        default=0.5,
        metavar="SHARE",
        help="of gradients that stay within the norm; default 0.5",
    )
    adaptive.add_argument(
        "--clipbound-learning-rate", type=_positive, default=0.2, metavar="RATE", help="default 0.2"
    )
    adaptive.add_argument(
        "--unclipped-num-std",
        type=_positive,
        metavar="STD",
        help="noise on the number of them; default: a twentieth of the expected batch",
    )

    model = p.add_argument_group("model")
    model.add_argument(
        "--model",
        type=_factory,
        metavar="PACKAGE.MODULE:FACTORY",
        help="factory(features, classes)",
    )
    model.add_argument("--hidden", type=_sizes, help="layers of the MLP, as in 64,32")
    model.add_argument("--optimizer", choices=("adam", "sgd"), default="adam")
    model.add_argument("--lr", type=_positive)
    model.add_argument(
        "--lr-schedule", choices=SCHEDULES, default="constant", help="falls towards the last step"
    )
    model.add_argument(
        "--warmup-steps", type=_count, default=0, metavar="N", help="in which the rate climbs"
    )
    model.add_argument("--seed", type=int, default=0, help="of the first weights; default 0")

    run = p.add_argument_group("run")
    run.add_argument("--algo", choices=_core.algorithms(), help="all-reduce; default: chosen")
    run.add_argument("--transport", choices=("shm", "mpi"))
    run.add_argument("--threads", type=_count, help="a rank; default: its share of the cores")
    run.add_argument("--checkpoint", type=Path, help="default in runs/NAME[-non-private]")
    run.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    run.add_argument("--summary", type=Path, help="default: beside the checkpoint")

    along = p.add_argument_group("on the way (test records, who are outside of ε)")
    along.add_argument(
        "--evaluate-every", type=_count, metavar="STEPS", help="default: a tenth of the run"
    )
    along.add_argument(
        "--patience",
        type=_count,
        metavar="N",
        help="stop after N evaluations without a better AUC or accuracy; steps not taken cost no ε",
    )
    along.add_argument("--metrics", type=Path, help="JSON lines; default: beside the checkpoint")
    along.add_argument("--tensorboard", type=Path, metavar="FOLDER", help="event files")
    return p


def _flags_of(parser: argparse.ArgumentParser, path: Path, given: Sequence[str]) -> list[str]:
    """The file as flags, so that one parser checks both, without those that `given` excludes."""
    given_flags = {argument.partition("=")[0] for argument in given}
    beaten = set()
    for group in parser._mutually_exclusive_groups:
        group_flags = {name for action in group._group_actions for name in action.option_strings}
        beaten |= group_flags if group_flags & given_flags else set()
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}: give a file that exists") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--config {path} is not TOML: {error}") from error
    known = {action.option_strings[-1]: action for action in parser._actions}
    flags = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if flag not in known or flag in ("--help", "--config"):
            names = ", ".join(sorted(option[2:] for option in known))
            raise UsageError(f"--config {path}: '{name}' is unknown: use {names}")
        if known[flag].nargs == 0:  # a switch
            if not isinstance(value, bool):
                raise UsageError(f"--config {path}: {name} = {value!r}: write true or false")
            flags += [flag] if value and flag not in beaten else []
        elif flag not in beaten:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            flags.append(f"{flag}={text}")
    return flags


def _number(text: str, kind: Callable[[str], Any], fits: Callable[[Any], bool], what: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not {what}")
    return value


def _positive(text: str) -> float:
    return _number(text, float, lambda v: 0 < v < math.inf, "a number above 0")


def _count(text: str) -> int:
    return _number(text, int, lambda v: v > 0, "a whole number above 0")


def _rate(text: str) -> float:
    return _number(text, float, lambda v: 0 < v <= 1, "a number above 0, at most 1")


def _share(text: str) -> float:
    return _number(text, float, lambda v: 0 < v < 1, "a number between 0 and 1")


def _sizes(text: str) -> tuple[int, ...]:
    """No layers, as in --hidden '', is logistic regression."""
    return tuple(_count(part) for part in text.split(",") if part)


def _name(text: str) -> str:
    if not text or Path(text).name != text:
        raise argparse.ArgumentTypeError(f"'{text}' is not a name: give a folder as --data")
    return text


def _factory(text: str) -> str:
    module, _, name = text.partition(":")
    if not module or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"'{text}' is not PACKAGE.MODULE:FACTORY")
    return text
