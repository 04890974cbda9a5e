"""Poisson batches of an ordinary data loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

from dpcomm._core import UsageError
from dpcomm.privacy.sampling import poisson_sample, share, truncated_sample
from dpcomm.privacy.step import shared_key


class PrivateLoader:
    """Poisson batches of a data loader's data set; `len` is the steps of an epoch.

    A batch may be empty, and still is one: pass it on like any other. Of a batch of more than
    `truncated` records, over all ranks, a random so many are taken; it comes in parts of at most
    `most`.
    """

    def __init__(
        self,
        comm: Any,
        loader: DataLoader,
        most: int | None = None,
        truncated: int | None = None,
        unsafe_seed: int | None = None,
    ) -> None:
        if loader.batch_size is None or not hasattr(loader.dataset, "__len__"):
            raise UsageError(
                "the loader has no batch_size, or its data set no length: Poisson sampling needs "
                "both; give a DataLoader(dataset, batch_size=…) of a map-style data set"
            )
        if type(loader.sampler) not in (SequentialSampler, RandomSampler, DistributedSampler):
            raise UsageError(
                f"the loader draws by a {type(loader.sampler).__name__}: batches are Poisson "
                "samples of the whole data set; to keep records out give "
                "torch.utils.data.Subset(dataset, ids)"
            )
        self.records = len(loader.dataset)
        if not 0 < loader.batch_size <= self.records:
            raise UsageError(f"batch_size={loader.batch_size} of {self.records} records")
        if most is not None and most < 1:
            raise UsageError(f"max_physical_batch_size={most}: give at least 1")
        self.expected_batch = float(loader.batch_size)
        self.sample_rate = loader.batch_size / self.records
        self.drawn = 0  # batches
        self.parts = 0  # of all batches, handed out
        self.part_size = 0  # samples in the last of them
        self.last_part = True  # of the batch that was handed out last
        self._comm, self._most, self._truncated = comm, most, truncated
        self._key = shared_key(comm, unsafe_seed)
        self._tensors = _tensors_of(loader)
        self._loader = DataLoader(
            loader.dataset,
            batch_sampler=_Given(self._parts),
            collate_fn=_with_empty(loader.collate_fn, loader.dataset),
            num_workers=0,
            pin_memory=loader.pin_memory,
        )

    def __len__(self) -> int:
        return max(1, round(1 / self.sample_rate))

    def __iter__(self) -> Iterator[Any]:
        if self._tensors is None:
            return iter(self._loader)
        return map(self.load, self._parts())

    def load(self, ids: np.ndarray) -> list[Tensor]:
        """The records `ids` of a TensorDataset, without a Python call for each."""
        assert self._tensors is not None
        chosen = torch.from_numpy(ids)
        return [tensor.index_select(0, chosen) for tensor in self._tensors]

    def _draw(self, begin: int, end: int) -> np.ndarray:
        if self._truncated is None:
            return poisson_sample(self._key, self.drawn, self.sample_rate, begin, end)
        return truncated_sample(
            self._key, self.drawn, self.sample_rate, self.records, self._truncated, begin, end
        )

    def _parts(self) -> Iterator[np.ndarray]:
        begin, end = share(self.records, self._comm.rank, self._comm.size)
        for _ in range(len(self)):
            ids = self._draw(begin, end)
            self.drawn += 1
            most = self._most or max(1, len(ids))
            parts = [ids[i : i + most] for i in range(0, len(ids), most)] or [ids]
            for index, part in enumerate(parts, 1):
                self.last_part = index == len(parts)
                self.parts, self.part_size = self.parts + 1, len(part)
                yield part


class _Given:
    """A batch sampler of what a function yields."""

    def __init__(self, parts: Callable[[], Iterator[np.ndarray]]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[list[int]]:
        return (part.tolist() for part in self._parts())


def _tensors_of(loader: DataLoader) -> tuple[Tensor, ...] | None:
    """What a TensorDataset in an ordinary loader holds: its batches can be gathered by index."""
    plain = type(loader.dataset) is TensorDataset and loader.collate_fn is default_collate
    if not plain or loader.pin_memory:
        return None
    return loader.dataset.tensors  # type: ignore[attr-defined]


def _with_empty(collate: Callable[[list[Any]], Any], dataset: Any) -> Callable[[list[Any]], Any]:
    """Collates no samples too: as one, of which nothing is kept."""

    def nothing_of(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value[:0]
        if isinstance(value, dict):
            return {name: nothing_of(part) for name, part in value.items()}
        return type(value)(nothing_of(part) for part in value)

    return lambda samples: collate(samples) if samples else nothing_of(collate([dataset[0]]))
