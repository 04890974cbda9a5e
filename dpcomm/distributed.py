"""torch.distributed over dpcomm, and dpcomm over torch.distributed.

dist.init_process_group("dpcomm")                                  # under torchrun
dist.init_process_group("dpcomm", init_method="dpcomm://")         # under mpirun, srun or alone
comm = dpcomm.from_process_group()                                 # beside any group, as Gloo's

Where dpcomm is installed, torch knows the backend by itself; else import this module first.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dpcomm import backend, launch
from dpcomm._core import UsageError
from dpcomm.comm import Communicator, shared_bytes

backend.register()

# torch's stubs overload these methods, otherwise in each release: untyped bases spare the quarrel.
_ProcessGroup: Any = dist.ProcessGroup
_Work: Any = dist.Work

_OPS = {"SUM": "sum", "AVG": "mean", "MAX": "max", "MIN": "min"}


class ProcessGroup(_ProcessGroup):
    """The collectives of torch.distributed on CPU tensors, by a communicator.

    A call with `async_op=True`, as DistributedDataParallel makes, is handed to the communicator's
    thread; any other is done when it returns. Reductions are sum, avg, max, min and torch's
    pre-multiplied sum, over the dtypes of `Communicator`; what only moves data takes any dtype.

    Raises UsageError for tensors that are not dense, contiguous and on the CPU, and for what is not
    offered: send and receive, gather, scatter, other reductions. The deadline is the group's, set
    when it is made, not a single call's.
    """

    def __init__(self, comm: Communicator) -> None:
        super().__init__(comm.rank, comm.size)
        self.comm = comm
        self._name, self._description = "", "undefined"

    def getBackendName(self) -> str:  # noqa: N802 (this and the next names are torch's)
        return "dpcomm"

    def setGroupName(self, name: str) -> None:  # noqa: N802
        self._name = name

    def getGroupName(self) -> str:  # noqa: N802
        return self._name

    @property
    def group_name(self) -> str:
        return self._name

    def shutdown(self) -> None:
        self.comm.close()

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Work:
        return self.allreduce_coalesced(tensors, opts)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> Work:
        op, factor = _reduction(opts)
        dense = [_dense(tensor) for tensor in tensors]

        def work() -> None:
            for tensor in dense:
                if factor is not None:
                    tensor.mul_(factor)
                self.comm.all_reduce(tensor, op)

        return self._begin(work, tensors, opts)

    def reduce(self, tensors: list[Tensor], opts: Any) -> Work:
        op, factor = _reduction(opts)
        (tensor,) = map(_dense, tensors)

        def work() -> None:
            scaled = tensor if factor is None else tensor * factor
            out = tensor if self.rank() == opts.rootRank else None
            self.comm.reduce(scaled, op, opts.rootRank, out)

        return self._begin(work, tensors, opts)

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> Work:
        return self.reduce_scatter_single_coalesced([output], [input], opts)

    def reduce_scatter_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        op, factor = _reduction(opts)
        pairs = [
            (_flat(output), _flat(input)) for output, input in zip(outputs, inputs, strict=True)
        ]

        def work() -> None:
            for output, input in pairs:
                scaled = input if factor is None else input * factor
                self.comm.reduce_scatter(scaled, op, out=output)

        return self._begin(work, outputs, opts)

    def reduce_scatter(
        self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None
    ) -> Work:
        (output,), (parts,) = outputs, inputs
        self._check_parts("reduce_scatter", parts, output)
        return self.reduce_scatter_single(output, torch.cat([_flat(part) for part in parts]), opts)

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> Work:
        return self.all_gather_single_coalesced([output], [input], opts)

    def all_gather_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        pairs = [
            (_bytes(output), _bytes(input)) for output, input in zip(outputs, inputs, strict=True)
        ]

        def work() -> None:
            for output, input in pairs:
                self.comm.all_gather(input, out=output)

        return self._begin(work, outputs, opts)

    def allgather(
        self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        return self.allgather_coalesced([[part] for part in outputs[0]], inputs, opts)

    def allgather_coalesced(
        self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        """outputs[rank][i] becomes what inputs[i] is on that rank."""
        for index, input in enumerate(inputs):
            self._check_parts("all_gather", [of_rank[index] for of_rank in outputs], input)
        sent = [_bytes(input) for input in inputs]

        def work() -> None:
            for index, input in enumerate(sent):
                gathered = self.comm.all_gather(input).view(self.size(), -1)
                for of_rank, row in zip(outputs, gathered, strict=True):
                    _bytes(of_rank[index]).copy_(row)

        return self._begin(work, outputs, opts)

    def broadcast(self, tensors: list[Tensor], opts: Any) -> Work:
        (sent,) = map(_bytes, tensors)
        return self._begin(lambda: self.comm.broadcast(sent, opts.rootRank), tensors, opts)

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_splits: list[int],
        input_splits: list[int],
        opts: Any = None,
    ) -> Work:
        if not (output_splits or input_splits):
            received, sent = _bytes(output), _bytes(input)
            return self._begin(lambda: self.comm.all_to_all(sent, out=received), [output], opts)
        outputs = output.split(output_splits or len(output) // self.size())
        inputs = input.split(input_splits or len(input) // self.size())
        return self.alltoall(outputs, inputs, opts)

    def alltoall(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None
    ) -> Work:
        """Parts may differ in size: all travel padded to the longest of any rank."""
        received, sent = [_bytes(part) for part in outputs], [_bytes(part) for part in inputs]
        if not len(received) == len(sent) == self.size():
            raise self._error(
                f"all_to_all of {len(sent)} to {len(received)} parts: give one for each rank"
            )

        def work() -> None:
            longest = torch.tensor([max(part.numel() for part in [*sent, *received])])
            self.comm.all_reduce(longest, "max")
            padded = torch.zeros(self.size(), int(longest), dtype=torch.uint8)
            for row, part in zip(padded, sent, strict=True):
                row[: part.numel()] = part
            for row, part in zip(self.comm.all_to_all(padded), received, strict=True):
                part.copy_(row[: part.numel()])

        return self._begin(work, list(outputs), opts)

    def barrier(self, opts: Any = None) -> Work:
        return self._begin(self.comm.barrier, [], opts)

    # What torch 2.12 and older call them.
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single

    def gather(self, *_: Any) -> Work:
        raise self._error("gather is not offered: use all_gather")

    def scatter(self, *_: Any) -> Work:
        raise self._error("scatter is not offered: use broadcast, or all_to_all")

    def send(self, *_: Any) -> Work:
        raise self._error("send and recv are not offered: use all_to_all, or a Gloo group beside")

    recv = recv_anysource = send

    def _begin(self, work: Callable[[], Any], result: Any, opts: Any) -> Work:
        """Does the work, or has it done on the communicator's thread."""
        begun = Work(result)
        if getattr(opts, "asyncOp", True):
            self.comm.submit(begun.run, work)
        else:
            self.comm.settle()
            work()
            begun.run(lambda: None)
        return begun

    def _check_parts(self, name: str, parts: list[Tensor], like: Tensor) -> None:
        shapes = {(part.numel(), part.dtype) for part in [*parts, like]}
        if len(parts) != self.size() or len(shapes) > 1:
            raise self._error(
                f"{name} of {len(parts)} parts of {sorted(n for n, _ in shapes)} elements: "
                f"give {self.size()}, one for each rank, of the same size and dtype"
            )

    def _error(self, text: str) -> UsageError:
        return UsageError(f"rank {self.rank()}/{self.size()}: dpcomm: {text}")


class Work(_Work):
    """A collective that torch can wait for, or attach callbacks to."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self._result = result
        self._done: torch.futures.Future[Any] = torch.futures.Future()

    def run(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as error:  # raised where somebody waits
            launch.remember(error)
            self._done.set_exception(error)
        else:
            self._done.set_result(self._result)

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Returns once it is done; raises what the collective raised."""
        self._done.wait()
        return True

    def get_future(self) -> torch.futures.Future[Any]:
        # An error that Python sets is a value to C++, which DDP would take for the result; one that
        # a callback raises is an error to both.
        return self._done.then(lambda done: done.value())

    def is_completed(self) -> bool:
        return self._done.done()

    def is_success(self) -> bool:
        return self._done.done() and self.exception() is None

    def exception(self) -> BaseException | None:
        try:
            self._done.value()
        except BaseException as error:
            return error
        return None

    def result(self) -> Any:
        return self._done.wait()


def from_process_group(
    group: dist.ProcessGroup | None = None,
    transport: str | None = None,
    timeout: float | None = None,
) -> Communicator:
    """A communicator of the ranks of a group of torch.distributed, whatever its backend.

    group: None for the default one. They meet through it, and then talk as after `dpcomm.init()`:
    through shared memory on one host, else through MPI. Collective over the group.

    Raises UsageError where the calling process is not in the group, and as `dpcomm.init()` does.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise UsageError("this process is not in the group: call it on the group's ranks only")

    def exchange(said: str) -> list[str]:
        everything: list[Any] = [None] * size
        dist.all_gather_object(everything, said, group)
        return everything

    return launch.meet(rank, size, exchange, transport, timeout)


def group_through(store: dist.Store, rank: int, size: int, timeout: timedelta) -> ProcessGroup:
    """The group of all ranks that come to the store: what torch calls for the backend "dpcomm"."""

    def exchange(said: str) -> list[str]:
        store.set(f"dpcomm/{rank}", said)
        return [store.get(f"dpcomm/{peer}").decode() for peer in range(size)]

    comm = launch.meet(rank, size, exchange, timeout=timeout.total_seconds())
    store.delete_key(f"dpcomm/{rank}")  # all have read it; a later group may meet at this store
    return ProcessGroup(comm)


def launched(
    url: str, timeout: timedelta = timedelta(minutes=5), **_: Any
) -> tuple[dist.Store, int, int]:
    """The store, rank and size of a job of any launcher that `dpcomm.init` knows: the meeting of
    `init_method="dpcomm://"`, which unlike env:// needs no variables but the launcher's."""
    comm = launch.init()
    address = b""
    store = None
    if comm.rank == 0:
        host = "localhost" if comm.hosts == 1 else socket.getfqdn()
        store = dist.TCPStore(host, 0, comm.size, True, timeout, wait_for_workers=False)
        address = f"{host} {store.port}".encode()
    host, port = shared_bytes(comm, address).decode().split()
    if store is None:
        store = dist.TCPStore(host, int(port), comm.size, False, timeout, wait_for_workers=False)
    rank, size = comm.rank, comm.size
    comm.close()
    return store, rank, size


def _reduction(opts: Any) -> tuple[str, Any]:
    """Our name of torch's reduction, and what each rank multiplies its tensor by first."""
    if opts is None:
        return "sum", None
    reduction = opts.reduceOp
    name = getattr(reduction, "op", reduction).name
    if name == "PREMUL_SUM":
        return "sum", reduction.__getstate__()[1]
    if name not in _OPS:
        raise UsageError(f"dpcomm: the reduction {name} is not offered: use {', '.join(_OPS)}")
    return _OPS[name], None


def _dense(tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided:
        raise UsageError(f"dpcomm: a tensor of layout {tensor.layout}: pass tensor.to_dense()")
    if not tensor.is_cpu:
        raise UsageError(f"dpcomm: a tensor on {tensor.device}: dpcomm's groups are of the CPU")
    if not tensor.is_contiguous():
        raise UsageError(
            f"dpcomm: a tensor with strides {tensor.stride()} for shape {tuple(tensor.shape)}: "
            "pass tensor.contiguous()"
        )
    return tensor.detach()


def _flat(tensor: Tensor) -> Tensor:
    return _dense(tensor).view(-1)


def _bytes(tensor: Tensor) -> Tensor:
    """The memory of a tensor of any dtype, for what only moves it."""
    return _flat(tensor).view(torch.uint8)
