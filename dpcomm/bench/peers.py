"""The same collectives by others: MPI through mpi4py and Gloo through torch.distributed on NumPy
arrays, NCCL through torch.distributed on CUDA tensors."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dpcomm import _core
from dpcomm.comm import shared_bytes

if TYPE_CHECKING:
    from dpcomm.comm import Communicator

PEERS = ("mpi", "gloo", "nccl")


def call(
    peer: str, comm: Communicator, op: str, data: Any, out: Any, redop: str, root: int
) -> Callable[[], Any]:
    """A call of `op` by `peer` on the ranks of the whole job; `out` is `data` where it is in place.

    Raises UsageError for what the peer has not, EnvironmentError where it is not installed.
    """
    try:
        if peer == "mpi":
            calls = _mpi(comm, data, out, redop, root)
        else:
            calls = _torch(peer, comm, data, out, redop, root)
    except ImportError as error:
        package = "mpi4py" if peer == "mpi" else "torch"
        raise _core.EnvironmentError(f"--peers {peer}: pip install {package} ({error})") from error
    except KeyError as error:
        raise _core.UsageError(f"peer {peer} has no {error.args[0]}: leave it out") from error
    return calls[op]


def _mpi(
    comm: Communicator, data: Any, out: Any, redop: str, root: int
) -> dict[str, Callable[[], Any]]:
    from mpi4py import MPI

    if not MPI.Is_initialized():
        raise _core.UsageError("peer mpi needs mpirun: mpirun -np 8 python -m dpcomm.bench …")
    world = MPI.COMM_WORLD
    types = {"float64": "DOUBLE", "float32": "FLOAT", "int64": "INT64_T", "int32": "INT32_T"}
    kind = getattr(MPI, {**types, "uint8": "UINT8_T"}[data.dtype.name])
    add = {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN}[redop]
    given, taken = [data, data.size, kind], [out, out.size, kind]
    part = [out, out.size // comm.size, kind]  # of a result that all ranks' parts make up
    sent = [data, data.size // comm.size, kind]
    at_root = comm.rank == root
    return {
        "all_reduce": lambda: world.Allreduce(MPI.IN_PLACE, given, add),
        "reduce_scatter": lambda: world.Reduce_scatter_block(given, taken, add),
        "all_gather": lambda: world.Allgather(given, part),
        "all_to_all": lambda: world.Alltoall(sent, part),
        "broadcast": lambda: world.Bcast(given, root),
        "reduce": lambda: world.Reduce(
            MPI.IN_PLACE if at_root else given, given if at_root else None, add, root
        ),
        "barrier": world.Barrier,
    }


def _torch(
    backend: str, comm: Communicator, data: Any, out: Any, redop: str, root: int
) -> dict[str, Callable[[], Any]]:
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        _start(backend, comm, dist)
    add = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}[redop]
    given, taken = data, out
    if isinstance(data, np.ndarray):
        given, taken = _tensor(data), _tensor(out)
    calls: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: dist.all_reduce(given, add),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(taken, given, add),
        "all_gather": lambda: dist.all_gather_into_tensor(taken, given),
        "all_to_all": lambda: dist.all_to_all_single(taken, given),
        "broadcast": lambda: dist.broadcast(given, root),
        "reduce": lambda: dist.reduce(given, root, add),
        "barrier": dist.barrier,
    }
    if backend != "nccl":
        return calls

    def ended(call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            call()
            torch.cuda.synchronize()  # ours, too, return when all is done

        return run

    return {op: ended(call) for op, call in calls.items()}


def _tensor(array: np.ndarray) -> Any:
    import torch

    if array.dtype.name == "bfloat16":  # NumPy's is a stranger to torch
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _start(backend: str, comm: Communicator, dist: Any) -> None:
    """Meets at a port of rank 0's host, which our communicator tells."""
    host = "127.0.0.1" if comm.hosts == 1 else socket.gethostname()
    address = b""
    store = None
    if comm.rank == 0:
        store = dist.TCPStore(host, 0, comm.size, is_master=True, wait_for_workers=False)
        address = f"{host} {store.port}".encode()
    host, port = shared_bytes(comm, address).decode().split()
    if store is None:
        store = dist.TCPStore(host, int(port), comm.size)
    dist.init_process_group(backend, store=store, rank=comm.rank, world_size=comm.size)
