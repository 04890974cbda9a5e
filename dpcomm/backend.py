"""What torch loads when it is imported itself, so that it knows a backend named "dpcomm".

Named as an entry point of dpcomm, and small: nothing of dpcomm is loaded before a group is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta


def register() -> None:
    """Makes `init_process_group(backend="dpcomm")` known, and `init_method="dpcomm://"`."""
    if not dist.is_available() or "DPCOMM" in dist.Backend._plugins:
        return
    dist.Backend.register_backend("dpcomm", _group, devices=["cpu"])
    dist.register_rendezvous_handler("dpcomm", _rendezvous)


def _group(store: dist.Store, rank: int, size: int, timeout: timedelta) -> Any:
    from dpcomm.distributed import group_through

    return group_through(store, rank, size, timeout)


def _rendezvous(url: str, **settings: Any) -> Iterator[tuple[dist.Store, int, int]]:
    from dpcomm.distributed import launched

    yield launched(url, **settings)
