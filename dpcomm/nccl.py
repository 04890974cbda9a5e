"""NCCL for the collectives of CUDA tensors: found, agreed on by all ranks, opened at the first one.

The library is the one that torch brought, so that a process holds one NCCL; DPCOMM_NCCL names
another.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpcomm import _core, arrays, cuda
from dpcomm.comm import gathered_bytes

if TYPE_CHECKING:
    from dpcomm.comm import Communicator

_SHARING = 23000  # the first NCCL that lets several ranks share a GPU
# What it then needs, experimental as it is; few thread blocks, for the ranks' kernels take turns.
_SHARED = {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_NVLS_ENABLE": "0"}
_SHARED_CTAS = 2


@dataclass(frozen=True)
class Place:
    """What a rank found. `error` is empty where it is ready for NCCL."""

    gpu: str  # its UUID
    version: int  # of NCCL: 23004 is 2.30.4
    error: str = ""


def library() -> str:
    """DPCOMM_NCCL, or where torch's wheel of NCCL lies, or the name of the system's."""
    if named := os.environ.get("DPCOMM_NCCL"):
        return named
    spec = importlib.util.find_spec("nvidia.nccl") if importlib.util.find_spec("nvidia") else None
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / "lib" / "libnccl.so.2"
        if path.exists():
            return str(path)
    return "libnccl.so.2"


def version() -> str:
    """Of the library, as "2.30.4"; opens it, which touches no GPU. Raises EnvironmentError where
    that cannot be, or it is too old."""
    return _text(_core.NcclLibrary(library()).version)


def gpu(comm: Communicator) -> int:
    """The index of the GPU that this rank should take: they go round the ranks of a host.

    Raises EnvironmentError, with the reason, where there is none.
    """
    who = f"rank {comm.rank}/{comm.size}"
    try:
        import torch
    except ImportError as error:
        raise _core.EnvironmentError(f"{who}: transport nccl needs torch: {error}") from error
    if not torch.cuda.is_available():
        raise _core.EnvironmentError(
            f"{who}: transport nccl needs a CUDA GPU, and torch {torch.__version__} finds none\n"
            "  fix: see nvidia-smi, and that torch is a build for CUDA; or use transport shm or mpi"
        )
    cuda.kernels()
    hosts = comm.core.hosts
    neighbours = [rank for rank in range(comm.size) if hosts[rank] == hosts[comm.rank]]
    return neighbours.index(comm.rank) % torch.cuda.device_count()


def stream(comm: Communicator, *views: arrays.Array) -> int:
    """The address of torch's current stream for arrays on one GPU; opens NCCL at the first call,
    which is collective, as the call that it is for."""
    first = views[0].device
    if any(view.device != first for view in views):
        places = " and ".join(view.device for view in views)
        raise _core.UsageError(f"rank {comm.rank}/{comm.size}: arrays on {places}: give one device")
    index, address = cuda.place(views[0])
    if comm.gpu is None:
        _open(comm, index)
        comm.gpu = index
    elif comm.gpu != index:
        raise _core.UsageError(
            f"rank {comm.rank}/{comm.size}: an array on cuda:{index}, but this communicator's GPU "
            f"is cuda:{comm.gpu}: a rank has one"
        )
    return address


def check(places: Sequence[Place], hosts: Sequence[int]) -> bool:
    """Whether ranks share a GPU. Raises EnvironmentError, alike on every rank, where NCCL would not
    work: what a rank lacks, different versions, sharing before NCCL 2.30."""
    for rank, place in enumerate(places):
        if place.error:
            raise _core.EnvironmentError(f"rank {rank} cannot use NCCL: {place.error}")
        if place.version != places[0].version:
            raise _core.EnvironmentError(
                f"NCCL is {_text(places[0].version)} on rank 0 and {_text(place.version)} on rank "
                f"{rank}\n  fix: install the same torch, or set DPCOMM_NCCL alike, everywhere"
            )
    first: dict[tuple[int, str], int] = {}
    for rank, key in enumerate(
        (host, place.gpu) for host, place in zip(hosts, places, strict=True)
    ):
        other = first.setdefault(key, rank)
        if other == rank:
            continue
        if places[0].version < _SHARING:
            raise _core.EnvironmentError(
                f"ranks {other} and {rank} share the GPU {place.gpu}, and NCCL "
                f"{_text(places[0].version)} runs one rank a GPU\n  fix: start no more ranks on a "
                f"host than it has GPUs, or set DPCOMM_NCCL to NCCL {_text(_SHARING)} or newer"
            )
        return True
    return False


def _open(comm: Communicator, index: int) -> None:
    import torch

    found = None
    try:
        found = _core.NcclLibrary(library())
        own = Place(cuda.kernels().uuid(index), found.version)
    except _core.EnvironmentError as error:
        own = Place("", 0, str(error))
    said = gathered_bytes(comm, json.dumps(asdict(own)).encode())
    places = [Place(**json.loads(text)) for text in said]
    shared = check(places, comm.core.hosts)
    assert found is not None
    if shared:
        for name, value in _SHARED.items():
            os.environ.setdefault(name, value)
    with torch.cuda.device(index):
        comm.core.open_nccl(found, cuda.kernels().gpu(index), _SHARED_CTAS if shared else 0)


def _text(version: int) -> str:
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"
