"""`mpirun -np N python -m dpcomm.bench OP`: every collective, with the letters of nccl-tests."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

import dpcomm
from dpcomm import _core, launch, tuner
from dpcomm.bench import gpu, peers, record, sweep

_OPERATIONS = (
    "all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "reduce", "barrier"
)  # fmt: skip
_DTYPES = ("float64", "float32", "bfloat16", "float16", "int64", "int32", "uint8")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _size(text: str) -> int:
    """8, 64K, 16M, 1G: bytes."""
    match = re.fullmatch(r"(\d+)([KMG]?)B?", text.upper())
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"'{text}' is no size: write bytes, or 64K, 16M, 1G")
    return int(match[1]) * _UNITS[match[2]]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line; the letters are those of nccl-tests."""
    p = argparse.ArgumentParser("python -m dpcomm.bench", description=__doc__)
    p.add_argument("op", choices=_OPERATIONS)
    p.add_argument("-b", "--minbytes", type=_size, default=_size("8"), help="default 8")
    p.add_argument("-e", "--maxbytes", type=_size, default=_size("16M"), help="default 16M")
    step = p.add_mutually_exclusive_group()
    step.add_argument("-f", "--stepfactor", type=float, default=4.0, help="default 4")
    step.add_argument("-i", "--stepbytes", type=_size, help="a fixed step instead of a factor")
    p.add_argument("-n", "--iters", type=_positive, default=20, help="default 20")
    p.add_argument("-w", "--warmup_iters", type=int, default=5, help="default 5")
    p.add_argument("-d", "--datatype", choices=_DTYPES, default="float32")
    p.add_argument("-o", "--redop", choices=("sum", "mean", "max", "min"), default="sum")
    p.add_argument("-c", "--check", type=int, choices=(0, 1), default=1, help="default 1")
    p.add_argument("-r", "--root", type=int, default=0)
    p.add_argument("-J", "--json", metavar="FILE", help="records, one JSON object a line")
    p.add_argument("--csv", metavar="FILE")
    p.add_argument("--algo", default="auto", help="a name, several with commas, auto or all")
    p.add_argument("--transport", choices=("shm", "mpi", "nccl"), help="nccl: buffers on GPUs")
    p.add_argument("--peers", default="", help="mpi, gloo, nccl: measured in turn")
    p.add_argument("--model", action="store_true", help="what the cost model says, beside it")
    p.add_argument("--explain", action="store_true", help="print what was tuned, and why; no sweep")
    p.add_argument("--plot", metavar="FILE.png", help="bandwidth and latency against size")
    return p


def _algorithms(
    args: argparse.Namespace, fail: Callable[[str], NoReturn]
) -> tuple[str | None, ...]:
    if args.op not in tuner.OPERATIONS:
        return ("tree" if args.op in ("broadcast", "reduce") else None,)
    known = _core.algorithms() if args.op == "all_reduce" else ["ring", "round_robin"]
    if args.transport == "nccl":
        known = [*known, "nccl"]
    if args.algo == "all":
        return tuple(known)
    if args.op == "all_reduce" and args.transport != "nccl":
        known = [*known, "mpi"]
    if args.algo == "auto":
        return (None,)
    chosen = args.algo.split(",")
    for name in chosen:
        if name not in known:
            fail(f"--algo {name}: {args.op} has {', '.join(known)}, auto or all")
    return tuple(chosen)


def _peers(args: argparse.Namespace, fail: Callable[[str], NoReturn]) -> tuple[str, ...]:
    chosen = tuple(name for name in args.peers.split(",") if name)
    for name in chosen:
        if name not in peers.PEERS:
            fail(f"--peers {name}: use {', '.join(peers.PEERS)}")
        if (name == "nccl") != (args.transport == "nccl"):
            place = "GPUs" if name == "nccl" else "the CPU"
            use = "nccl" if name == "nccl" else "shm or mpi"
            fail(f"--peers {name}: it is measured on {place}; use --transport {use}")
    if chosen and args.redop == "mean":
        fail("--peers: they have no mean; use -o sum")
    return chosen


def _parse() -> tuple[argparse.Namespace, sweep.Sweep]:
    p = parser()
    args = p.parse_args()
    if args.transport == "nccl" and (args.model or args.explain):
        p.error("--model and --explain are of the CPU's collectives; use --transport shm or mpi")
    if args.minbytes > args.maxbytes:
        p.error(f"-b {args.minbytes} is above -e {args.maxbytes}")
    if args.stepfactor <= 1:
        p.error(f"-f {args.stepfactor}: give a factor above 1")
    if args.op == "barrier":
        sizes: tuple[int, ...] = (0,)
    elif args.stepbytes:
        sizes = sweep.arithmetic(args.minbytes, args.maxbytes, args.stepbytes)
    else:
        sizes = sweep.geometric(args.minbytes, args.maxbytes, args.stepfactor)
    return args, sweep.Sweep(
        op=args.op,
        sizes=sizes,
        dtype=args.datatype,
        redop=args.redop,
        algorithms=_algorithms(args, p.error),
        peers=_peers(args, p.error),
        iterations=args.iters,
        warmup=args.warmup_iters,
        check=bool(args.check),
        root=args.root,
    )


def main() -> int:
    """Runs the sweep; 0, or 1 if a result was wrong."""
    with launch.one_voice():
        args, plan = _parse()
    on_gpu = args.transport == "nccl"
    comm = launch.init(transport=None if on_gpu else args.transport)
    speaks = comm.rank == 0
    if on_gpu:
        index, device = gpu.choose(comm)
        plan = replace(plan, gpu=index)
    if args.explain:
        found = tuner.find(comm)
        if speaks:
            print(tuner.explain(found, args.op, args.datatype))
        return 0
    if args.model:
        plan = replace(plan, model=tuner.find(comm))
    if speaks:
        print(
            f"# dpcomm {dpcomm.__version__}: {args.op}, {comm.size} ranks on {comm.hosts} host(s)"
        )
        if on_gpu:
            print(f"# {device}")
        cores = len(os.sched_getaffinity(0))
        if comm.size > cores * comm.hosts:
            print(f"# {comm.size} ranks share {cores} cores a host: latencies are those of turns")
        print(record.heading(args.model), flush=True)
    records = []
    for measured in sweep.run(comm, plan):
        records.append(measured)
        if speaks:
            print(record.line(measured, args.model), flush=True)
    limit = None
    if args.plot and not on_gpu and comm.hosts == 1 and args.op != "barrier":
        limit = record.memory_limit(args.op, comm.size, sweep.memory_bandwidth(comm))
    if speaks:
        _save(args, records, limit)
    return int(any(measured.wrong > 0 for measured in records))


def _save(args: argparse.Namespace, records: list[record.Record], limit: float | None) -> None:
    if args.json:
        with open(args.json, "w") as file:
            record.write_json(records, file)
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            record.write_csv(records, file)
    if args.plot:
        from dpcomm.bench import plot

        plot.save(records, args.plot, limit)


if __name__ == "__main__":
    sys.exit(main())
