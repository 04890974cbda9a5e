"""The rank's side of benchmarks/collectives.py: ours.py KIND BYTES CALLS [BYTES CALLS …].

KIND is registered, private, or gloo (torch's, on the same sizes).
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np

import dpcomm


def ours(comm: dpcomm.Communicator, kind: str, count: int, calls: int) -> list[float]:
    buffer = comm.empty(count) if kind == "registered" else np.empty(count, np.float32)
    return comm.core.time_all_reduce(buffer.ctypes.data, count, "float32", "", calls)


def gloo(comm: dpcomm.Communicator, count: int, calls: int) -> list[float]:
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        store = os.environ["DPCOMM_BENCH_STORE"]
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=comm.rank, world_size=comm.size
        )
    tensor, seconds = torch.empty(count), []
    for call in range(calls):
        tensor.fill_(call & 1)
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(tensor)
        seconds.append(time.perf_counter() - begin)
    return seconds


kind, *numbers = sys.argv[1:]
comm = dpcomm.init("shm")
for size, calls in zip(map(int, numbers[::2]), map(int, numbers[1::2]), strict=True):
    count = size // 4
    times = gloo(comm, count, calls) if kind == "gloo" else ours(comm, kind, count, calls)
    slowest = comm.all_reduce(np.array(times), op="max")
    if comm.rank == 0:
        print(size, f"{np.median(slowest):.9f}", flush=True)
