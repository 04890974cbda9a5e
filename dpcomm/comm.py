"""Collectives on the arrays of any library."""

from __future__ import annotations

from typing import Any

from dpcomm import _core, arrays


class Communicator:
    """The ranks of a job, or of a part of it. Made by `dpcomm.init()`.

    Every rank calls the same collectives, in the same order, with equal counts, dtypes and
    arguments; a rank that does not is found out: MismatchError, on every rank. A dead rank raises
    LostPeerError, one that does not come before the deadline TimeoutError, on all others; after
    either the communicator is of no more use.

    Arrays are torch tensors, NumPy arrays or anything with DLPack, contiguous, in the memory of the
    CPU, of float64, float32, bfloat16, float16, int64, int32 or uint8. The 16-bit types are added
    in float32. `op` is sum, mean, max or min. Results are the same bits on every rank, and have the
    type that came in. UsageError, a ValueError, for anything else, before a byte is sent.
    """

    def __init__(self, transport: _core.Transport) -> None:
        self.core = _core.Communicator(transport)

    @property
    def rank(self) -> int:
        return self.core.rank

    @property
    def size(self) -> int:
        return self.core.size

    @property
    def transport(self) -> str:
        """What carries the messages: local (threads of one process), shm or mpi."""
        return self.core.transport

    def __repr__(self) -> str:
        return f"<dpcomm.Communicator rank {self.rank}/{self.size} over {self.transport}>"

    def all_reduce(
        self, tensor: Any, op: str = "sum", algo: str | None = None, out: Any = None
    ) -> Any:
        """The reduction of all ranks' `tensor`, in place or into `out` of the same shape.

        `algo` is naive, ring, tree, butterfly, round_robin or recursive_doubling; None chooses.
        """
        source = self._array(tensor, "tensor", written=out is None)
        target = source if out is None else self._out(out, source, source.shape)
        self.core.all_reduce(
            source.pointer, target.pointer, source.count, source.dtype, op, algo or ""
        )
        return target.source

    def reduce_scatter(
        self, tensor: Any, op: str = "sum", algo: str | None = None, out: Any = None
    ) -> Any:
        """This rank's part of the reduction of all ranks' `tensor`, in a new array or in `out`.

        `tensor` has shape [size * n, ...], the result [n, ...]. `algo` is ring or round_robin.
        """
        source = self._array(tensor, "tensor")
        rows = source.shape[0] if source.shape else 0
        if not source.shape or rows % self.size:
            raise self._error(
                f"reduce_scatter of shape {source.shape} over {self.size} ranks leaves a rest: "
                f"pad the first dimension to a multiple of {self.size}"
            )
        shape = (rows // self.size, *source.shape[1:])
        target = self._out(out, source, shape)
        self.core.reduce_scatter(
            source.pointer, target.pointer, target.count, source.dtype, op, algo or ""
        )
        return target.source

    def all_gather(self, tensor: Any, algo: str | None = None, out: Any = None) -> Any:
        """All ranks' `tensor`, one after the other, in a new array or in `out`.

        `tensor` has shape [n, ...], the result [size * n, ...]. `algo` is ring or round_robin.
        """
        source = self._array(tensor, "tensor")
        if not source.shape:
            raise self._error("all_gather of a scalar: reshape it to [1]")
        target = self._out(out, source, (self.size * source.shape[0], *source.shape[1:]))
        self.core.all_gather(
            source.pointer, target.pointer, source.count, source.dtype, "sum", algo or ""
        )
        return target.source

    def broadcast(self, tensor: Any, root: int = 0) -> Any:
        """The root's `tensor`, in place on every rank."""
        source = self._array(tensor, "tensor", written=True)
        self.core.broadcast(source.pointer, source.pointer, source.count, source.dtype, root=root)
        return tensor

    def reduce(self, tensor: Any, op: str = "sum", root: int = 0, out: Any = None) -> Any:
        """On the root, the reduction of all ranks' `tensor`, in place or in `out`; elsewhere
        `tensor`, unchanged."""
        at_root = self.rank == root
        source = self._array(tensor, "tensor", written=at_root and out is None)
        target = self._out(out, source, source.shape) if at_root and out is not None else source
        self.core.reduce(source.pointer, target.pointer, source.count, source.dtype, op, root=root)
        return target.source

    def barrier(self) -> None:
        """Returns once every rank has called it."""
        self.core.barrier()

    def close(self) -> None:
        """This rank's part is over. Called when the process ends in peace."""
        self.core.close()

    def _array(self, array: Any, name: str, written: bool = False) -> arrays.Array:
        described = arrays.describe(array)
        if not described.contiguous:
            raise self._error(
                f"{name} has strides {described.strides} for shape {described.shape}: "
                "pass a contiguous one"
            )
        if described.device != "cpu":
            raise self._error(f"{name} is on {described.device}: pass one on the CPU")
        if written and not described.writable:
            raise self._error(f"{name} is read-only and would be written: give out=, or a copy")
        return described

    def _out(self, out: Any, source: arrays.Array, shape: tuple[int, ...]) -> arrays.Array:
        if out is None:
            out = arrays.empty(source.source, shape, source.dtype)
        target = self._array(out, "out", written=True)
        if target.shape != shape or target.dtype != source.dtype:
            raise self._error(
                f"out is {target.dtype} {target.shape}: this call needs {source.dtype} {shape}"
            )
        return target

    def _error(self, text: str) -> _core.UsageError:
        return _core.UsageError(f"rank {self.rank}/{self.size}: {text}")
