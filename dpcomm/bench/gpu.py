"""The benchmark's buffers on a GPU: torch tensors, which go over NCCL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dpcomm import nccl

if TYPE_CHECKING:
    from dpcomm.comm import Communicator


def choose(comm: Communicator) -> tuple[int, str]:
    """The index of this rank's GPU, made torch's current one, and a line that says what it is.

    Raises EnvironmentError where there is none.
    """
    index = nccl.gpu(comm)
    import torch

    torch.cuda.set_device(index)
    gpus = torch.cuda.device_count()
    shared = "; several ranks share a GPU: they take turns" if comm.size > gpus * comm.hosts else ""
    return index, f"{gpus} GPU(s) a host, {torch.cuda.get_device_name(index)}{shared}"


def empty(count: int, dtype: str, index: int) -> Any:
    """A tensor of arbitrary content."""
    import torch

    return torch.empty(count, dtype=getattr(torch, dtype), device=f"cuda:{index}")


def fill(tensor: Any, values: np.ndarray) -> None:
    """Copies whole numbers that every dtype holds, as the benchmark's patterns are."""
    import torch

    tensor.copy_(torch.from_numpy(values.astype(np.float32)))


def values(tensor: Any) -> np.ndarray:
    """What the tensor holds, in float64."""
    return tensor.cpu().double().numpy()
