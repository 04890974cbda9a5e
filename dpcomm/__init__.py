"""dpcomm: a communication engine for differentially private training on many processors.

    comm = dpcomm.init()                                 # mpirun, torchrun, srun or one process
    comm.all_reduce(tensor)
    clipped = dpcomm.clip_sum(grads, clip_norm=1.0)      # per-sample gradients [B, P]
    dpcomm.add_noise_(clipped.total, std=1.0, key=dpcomm.new_key(), step=0)

Importing this package starts neither MPI, CUDA nor a JVM, and imports no torch: each name is
loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpcomm import accounting
    from dpcomm._core import (
        EnvironmentError,
        Error,
        LostPeerError,
        MismatchError,
        TimeoutError,
        UsageError,
    )
    from dpcomm.comm import Communicator
    from dpcomm.ddp import register_private_hook
    from dpcomm.distributed import from_process_group
    from dpcomm.ghost import clip_linear
    from dpcomm.launch import init
    from dpcomm.privacy.clip import clip_sum
    from dpcomm.privacy.noise import add_noise_, new_key
    from dpcomm.privacy.plan import Plan
    from dpcomm.privacy.sampling import poisson_sample
    from dpcomm.privacy.step import PrivateStep
    from dpcomm.privacy.update import adam_update_, sgd_update_
    from dpcomm.private import make_private

__version__ = "0.1.0"

__all__ = [
    "Communicator",
    "EnvironmentError",
    "Error",
    "LostPeerError",
    "MismatchError",
    "Plan",
    "PrivateStep",
    "TimeoutError",
    "UsageError",
    "accounting",
    "adam_update_",
    "add_noise_",
    "clip_linear",
    "clip_sum",
    "from_process_group",
    "init",
    "make_private",
    "new_key",
    "poisson_sample",
    "register_private_hook",
    "sgd_update_",
]

# name -> the module that has it
_LATE = {
    "Communicator": "dpcomm.comm",
    "EnvironmentError": "dpcomm._core",
    "Error": "dpcomm._core",
    "LostPeerError": "dpcomm._core",
    "MismatchError": "dpcomm._core",
    "Plan": "dpcomm.privacy.plan",
    "PrivateStep": "dpcomm.privacy.step",
    "TimeoutError": "dpcomm._core",
    "UsageError": "dpcomm._core",
    "adam_update_": "dpcomm.privacy.update",
    "add_noise_": "dpcomm.privacy.noise",
    "clip_linear": "dpcomm.ghost",
    "clip_sum": "dpcomm.privacy.clip",
    "from_process_group": "dpcomm.distributed",
    "init": "dpcomm.launch",
    "make_private": "dpcomm.private",
    "new_key": "dpcomm.privacy.noise",
    "poisson_sample": "dpcomm.privacy.sampling",
    "register_private_hook": "dpcomm.ddp",
    "sgd_update_": "dpcomm.privacy.update",
}


def __getattr__(name: str) -> Any:
    if name == "accounting":
        return import_module("dpcomm.accounting")
    if name not in _LATE:
        raise AttributeError(f"module 'dpcomm' has no attribute '{name}'")
    value = getattr(import_module(_LATE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
