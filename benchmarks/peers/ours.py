"""The rank's side of benchmarks/collectives.py, pinned to core RANK modulo cores.

ours.py sums KIND… BUDGET BYTES…   prints KIND BYTES SECONDS for registered, private and gloo
ours.py python BUDGET              prints the seconds that Python adds to 8 bytes
ours.py idle SECONDS               prints the cores that all ranks but one use while they wait
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import numpy as np

import dpcomm

PROBES, FEWEST, MOST = 3, 5, 2000
KINDS = ("registered", "private", "gloo")

Timer = Callable[[int], list[float]]  # the seconds of each of so many calls


def ours(comm: dpcomm.Communicator, kind: str, count: int) -> Timer:
    buffer = comm.empty(count) if kind == "registered" else np.empty(count, np.float32)
    return lambda calls: comm.core.time_all_reduce(buffer.ctypes.data, count, "float32", "", calls)


def gloo(comm: dpcomm.Communicator, count: int) -> Timer:
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        store = os.environ["DPCOMM_BENCH_STORE"]
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=comm.rank, world_size=comm.size
        )
        torch.set_num_threads(1)
    tensor = torch.empty(count)

    def timer(calls: int) -> list[float]:
        seconds = []
        for call in range(calls):
            tensor.fill_(call & 1)
            dist.barrier()
            begin = time.perf_counter()
            dist.all_reduce(tensor)
            seconds.append(time.perf_counter() - begin)
        return seconds

    return timer


def from_python(comm: dpcomm.Communicator) -> Timer:
    buffer = comm.empty(2)

    def timer(calls: int) -> list[float]:
        seconds = []
        for call in range(calls):
            buffer[:] = call & 1
            comm.core.barrier()
            begin = time.perf_counter()
            comm.all_reduce(buffer)
            seconds.append(time.perf_counter() - begin)
        return seconds

    return timer


def midmean(values: np.ndarray) -> float:
    """The mean of the middle half, see mpi_allreduce.c."""
    quarter = len(values) // 4
    return float(np.sort(values)[quarter : len(values) - quarter].mean())


def midmean_of_slowest(comm: dpcomm.Communicator, timer: Timer, budget: float) -> float:
    begin = time.perf_counter()
    timer(PROBES)
    each = np.array([(time.perf_counter() - begin) / PROBES])
    slowest = comm.all_reduce(each, op="max")[0]
    calls = int(np.clip(budget / slowest, FEWEST, MOST))
    return midmean(comm.all_reduce(np.array(timer(calls)), op="max"))


def idle_cores(comm: dpcomm.Communicator, seconds: float) -> float:
    """Rank 0 comes late; the others wait for it in an all-reduce."""
    comm.barrier()
    begin, used = time.perf_counter(), time.process_time()
    if comm.rank == 0:
        time.sleep(seconds)
    comm.all_reduce(np.ones(2))
    cores = (time.process_time() - used) / (time.perf_counter() - begin)
    return float(comm.all_reduce(np.array([cores if comm.rank else 0.0]))[0])


def main(comm: dpcomm.Communicator, what: str, *arguments: str) -> None:
    def say(*words: object) -> None:
        if comm.rank == 0:
            print(*words, flush=True)

    if what == "idle":
        return say(idle_cores(comm, float(arguments[0])))
    if what == "python":
        budget = float(arguments[0])
        core = midmean_of_slowest(comm, ours(comm, "registered", 2), budget)
        return say(midmean_of_slowest(comm, from_python(comm), budget) - core)
    kinds = [word for word in arguments if word in KINDS]
    budget, *sizes = arguments[len(kinds) :]
    for size in map(int, sizes):
        for kind in kinds:
            timer = gloo(comm, size // 4) if kind == "gloo" else ours(comm, kind, size // 4)
            say(kind, size, f"{midmean_of_slowest(comm, timer, float(budget)):.10f}")
    if "gloo" in kinds:  # whose threads must not outlive the process
        sys.modules["torch"].distributed.destroy_process_group()
    return None


world = dpcomm.init("shm")
os.sched_setaffinity(0, {world.rank % (os.cpu_count() or 1)})
main(world, *sys.argv[1:])
