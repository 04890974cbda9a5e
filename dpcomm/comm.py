"""Collectives on the arrays of any library."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import numpy as np

from dpcomm import _core, arrays

if TYPE_CHECKING:
    from dpcomm.tuner import Tuning


def _run_keeping(
    arrays_in_use: tuple[Any, ...], collective: Callable[..., None], call: tuple[Any, ...]
) -> None:
    """The collective, on memory that the arrays own."""
    collective(*call)


class Handle:
    """A collective under way, from `async_op=True`. Its arrays live until it is done, also where
    nobody keeps the handle."""

    def __init__(self, future: Future[None], result: Any) -> None:
        self._future = future
        self._result = result

    def wait(self) -> Any:
        """The result, once it is there; raises what the collective raised."""
        self._future.result()
        return self._result

    def test(self) -> bool:
        """Whether wait() would return, or raise, at once."""
        return self._future.done()


class Communicator:
    """The ranks of a job, or of a part of it. Made by `dpcomm.init()`.

    Every rank calls the same collectives, in the same order, with equal counts, dtypes and
    arguments; a rank that does not is found out: MismatchError, on every rank. A dead rank raises
    LostPeerError, one that does not come before the deadline TimeoutError, on all others; after
    either the communicator is of no more use.

    With `async_op=True` a collective returns a Handle at once, and a thread of the communicator
    does the work, in the order of the calls, while the caller computes on; arrays must be left
    alone until wait().

    Arrays are torch tensors, NumPy arrays or anything with DLPack, contiguous, of float64, float32,
    bfloat16, float16, int64, int32 or uint8. The 16-bit types are added in float32. `op` is sum,
    mean, max or min. Results are the same bits on every rank, and have the type that came in.
    UsageError, a ValueError, for anything else, before a byte is sent.

    CUDA tensors go over NCCL, which is opened at the first of them, on torch's current stream; a
    call returns when every rank's GPU is done, so that nobody goes on with what a dead peer left
    half summed. `algo` is then "nccl", its own reduce-scatter and all-gather, or any of ours;
    EnvironmentError, alike on every rank, where NCCL cannot be used. A rank has one GPU.
    """

    def __init__(self, core: _core.Communicator, whole: Communicator | None = None) -> None:
        self.core = core
        self.gpu: int | None = None  # the index of its GPU, once NCCL is open
        self._whole = whole  # that this is a part of: an error on any of its ranks ends it
        self._worker: ThreadPoolExecutor | None = None
        self._thread: int | None = None  # the worker's
        self._last: Future[None] | None = None  # the latest that the worker was given

    @property
    def rank(self) -> int:
        return self.core.rank

    @property
    def size(self) -> int:
        return self.core.size

    @property
    def transport(self) -> str:
        """What carries the CPU's messages: local (threads of one process), shm, mpi, or shm+mpi."""
        return self.core.transport

    @property
    def hosts(self) -> int:
        """How many hosts the ranks are on."""
        return len(set(self.core.hosts))

    def __repr__(self) -> str:
        return f"<dpcomm.Communicator rank {self.rank}/{self.size} over {self.transport}>"

    def empty(self, shape: int | tuple[int, ...], dtype: Any = "float32") -> Any:
        """A new array that the ranks of the host reduce straight out of each other's memory.

        Its content is arbitrary. `dtype` is a torch dtype, for a tensor, or what NumPy takes, for
        an array. Every other buffer works too, through copies on the way in and out.

        Raises EnvironmentError when this rank's such arrays would exceed the host's memory, or its
        share of the 4 TiB that the ranks of a communicator map. What other ranks and programs hold
        is not counted: like any memory, a page is taken when it is first written.
        """
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(dtype, torch.dtype):
            registered: Any = self.core.allocate(math.prod(shape) * dtype.itemsize)
            if registered is None or math.prod(shape) == 0:  # frombuffer refuses an empty one
                return torch.empty(shape, dtype=dtype)
            return torch.frombuffer(registered, dtype=dtype).reshape(shape)
        kind = np.dtype(dtype)
        memory: Any = self.core.allocate(math.prod(shape) * kind.itemsize)
        if memory is None:
            return np.empty(shape, kind)
        return np.frombuffer(memory, kind, math.prod(shape)).reshape(shape)

    def all_reduce(
        self,
        tensor: Any,
        op: str = "sum",
        algo: str | None = None,
        out: Any = None,
        async_op: bool = False,
        scale: float = 1.0,
    ) -> Any:
        """The reduction of all ranks' `tensor`, in place or into `out` of the same shape.

        `algo` is naive, ring, tree, double_tree, butterfly, round_robin, recursive_doubling or
        hierarchical; None chooses. "mpi" is MPI_Allreduce, for comparison, over transport mpi: its
        waits have no deadline, and that its results are equal on all ranks is its own affair.
        With `scale`, of which each rank has its own, the sum is of scale·tensor: a product is
        rounded to the array's dtype, then added as in any sum. It takes no extra pass.
        """
        source = self._array(tensor, "tensor", written=out is None)
        target = source if out is None else self._out(out, source, source.shape)
        return self._run(
            async_op, self.core.all_reduce, source, target, source.count, op, algo, scale=scale
        )

    def reduce_scatter(
        self,
        tensor: Any,
        op: str = "sum",
        algo: str | None = None,
        out: Any = None,
        async_op: bool = False,
        scale: float = 1.0,
    ) -> Any:
        """This rank's part of the reduction of all ranks' `tensor`, in a new array or in `out`.

        `tensor` has shape [size * n, ...], the result [n, ...]. `algo` is ring or round_robin;
        `scale` as in all_reduce. `out` may be this rank's part of `tensor`.
        """
        source = self._array(tensor, "tensor")
        self._check_parts("reduce_scatter", source)
        shape = (source.shape[0] // self.size, *source.shape[1:])
        part = source.nbytes // self.size
        target = self._out(out, source, shape, -self.rank * part)
        return self._run(
            async_op, self.core.reduce_scatter, source, target, target.count, op, algo, scale=scale
        )

    def all_gather(
        self, tensor: Any, algo: str | None = None, out: Any = None, async_op: bool = False
    ) -> Any:
        """All ranks' `tensor`, one after the other, in a new array or in `out`.

        `tensor` has shape [n, ...], the result [size * n, ...]. `algo` is ring or round_robin.
        """
        source = self._array(tensor, "tensor")
        if not source.shape:
            raise self._error("all_gather of a scalar: reshape it to [1]")
        shape = (self.size * source.shape[0], *source.shape[1:])
        target = self._out(out, source, shape, self.rank * source.nbytes)
        return self._run(async_op, self.core.all_gather, source, target, source.count, "sum", algo)

    def all_to_all(self, tensor: Any, out: Any = None, async_op: bool = False) -> Any:
        """Part j of rank i's `tensor` becomes part i of rank j's result, a new array or `out`.

        Both have shape [size * n, ...] and size parts.
        """
        source = self._array(tensor, "tensor")
        self._check_parts("all_to_all", source)
        target = self._out(out, source, source.shape)
        count = source.count // self.size
        return self._run(async_op, self.core.all_to_all, source, target, count, "sum", None)

    def broadcast(self, tensor: Any, root: int = 0, async_op: bool = False) -> Any:
        """The root's `tensor`, in place on every rank."""
        source = self._array(tensor, "tensor", written=True)
        return self._run(
            async_op, self.core.broadcast, source, source, source.count, "sum", None, root
        )

    def reduce(
        self,
        tensor: Any,
        op: str = "sum",
        root: int = 0,
        out: Any = None,
        async_op: bool = False,
        scale: float = 1.0,
    ) -> Any:
        """On the root, the reduction of all ranks' `tensor`, in place or in `out`; elsewhere
        `tensor`, unchanged. `scale` as in all_reduce."""
        at_root = self.rank == root
        source = self._array(tensor, "tensor", written=at_root and out is None)
        target = self._out(out, source, source.shape) if at_root and out is not None else source
        return self._run(
            async_op, self.core.reduce, source, target, source.count, op, None, root, scale
        )

    def barrier(self) -> None:
        """Returns once every rank has called it."""
        self.settle()
        self.core.barrier()

    def split(self, color: int, key: int = 0) -> Communicator | None:
        """The communicator of the ranks that give the same `color`, in the order of `key`, then of
        rank. Every rank calls it; one with a negative color gets None."""
        self.settle()
        core = self.core.split(color, key)
        return None if core is None else Communicator(core, self)

    def tune(self, fresh: bool = False) -> Tuning:
        """Measures the algorithms here and takes the fastest from now on, where none is given.

        Every rank calls it; it takes about two seconds. What it finds is kept under the user's
        cache directory (XDG_CACHE_HOME) by host, transport and rank count, and found there the next
        time, unless `fresh`. It never trades a reduction in the order of ranks for one that is not.
        """
        from dpcomm import tuner

        self.settle()
        return tuner.tune(self, fresh)

    def close(self) -> None:
        """This rank's part is over. Called when the process ends in peace."""
        self.settle()
        self.core.close()

    def _run(
        self,
        async_op: bool,
        collective: Callable[..., None],
        source: arrays.Array,
        target: arrays.Array,
        count: int,
        op: str,
        algo: str | None,
        root: int = 0,
        scale: float = 1.0,
    ) -> Any:
        stream = self.stream(source, target)
        call = (
            source.pointer, target.pointer, count, source.dtype, op, algo or "", root, scale, stream
        )  # fmt: skip
        if not async_op:
            self.settle()
            collective(*call)
            return target.source
        in_use = (source.source, target.source)
        return Handle(self.submit(_run_keeping, in_use, collective, call), target.source)

    def stream(self, source: arrays.Array, target: arrays.Array) -> int | None:
        """The address of the stream that work on a GPU's arrays is for; None for the CPU's.

        Collective where a GPU's are the first of this communicator: it opens NCCL.
        """
        if source.device == target.device == "cpu":
            return None
        from dpcomm import nccl

        return nccl.stream(self, source, target)

    def submit(self, work: Callable[..., None], *arguments: Any) -> Future[None]:
        """Calls `work` on the communicator's thread, after all that is in flight.

        The collectives that it calls, blocking ones, take its place in the order.
        """
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, f"dpcomm rank {self.rank}", self._begin_thread)
        self._last = self._worker.submit(work, *arguments)
        return self._last

    def _begin_thread(self) -> None:
        self._thread = threading.get_ident()

    def settle(self) -> None:
        """Returns once nothing is in flight: collectives are in the order of their calls."""
        if self._last is not None and threading.get_ident() != self._thread:
            wait([self._last])
            self._last = None

    def _check_parts(self, name: str, source: arrays.Array) -> None:
        if not source.shape or source.shape[0] % self.size:
            raise self._error(
                f"{name} of shape {source.shape} over {self.size} ranks leaves a rest: "
                f"pad the first dimension to a multiple of {self.size}"
            )

    def _array(self, array: Any, name: str, written: bool = False) -> arrays.Array:
        described = arrays.describe(array)
        if not described.contiguous:
            raise self._error(
                f"{name} has strides {described.strides} for shape {described.shape}: "
                "pass a contiguous one"
            )
        if described.device != "cpu" and not described.device.startswith("cuda"):
            raise self._error(f"{name} is on {described.device}: pass one on the CPU or a CUDA GPU")
        if written and not described.writable:
            raise self._error(f"{name} is read-only and would be written: give out=, or a copy")
        return described

    def _out(
        self, out: Any, source: arrays.Array, shape: tuple[int, ...], place: int = 0
    ) -> arrays.Array:
        """`out`, or a new array. Where they overlap, the input must begin at its byte `place`."""
        if out is None:
            return self._array(arrays.empty(source.source, shape, source.dtype), "out")
        target = self._array(out, "out", written=True)
        if target.shape != shape or target.dtype != source.dtype:
            raise self._error(
                f"out is {target.dtype} {target.shape}: this call needs {source.dtype} {shape}"
            )
        begin = source.pointer - target.pointer
        if begin != place and -source.nbytes < begin < target.nbytes:
            raise self._error("out overlaps the input in part: give memory that is apart from it")
        return target

    def _error(self, text: str) -> _core.UsageError:
        return _core.UsageError(f"rank {self.rank}/{self.size}: {text}")


def shared_bytes(comm: Communicator, content: bytes) -> bytes:
    """Rank 0's bytes, on every rank. Collective; what the others give is not used."""
    length = comm.broadcast(np.array([len(content)]))
    data = np.zeros(length[0], np.uint8)
    if comm.rank == 0:
        data[:] = np.frombuffer(content, np.uint8)
    return comm.broadcast(data).tobytes()


def gathered_bytes(comm: Communicator, content: bytes) -> list[bytes]:
    """Every rank's bytes, of any length each, in the order of ranks. Collective."""
    lengths = comm.all_gather(np.array([len(content)]))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    rows = comm.all_gather(padded).reshape(comm.size, len(padded))
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]
