"""
The compiled core of dpcomm.
"""

from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import builtins
import typing

__all__: list[str] = [
    "Adam",
    "Blocks",
    "ClipRule",
    "Combine",
    "Communicator",
    "Cost",
    "Device",
    "EnvironmentError",
    "Error",
    "GhostSum",
    "Goal",
    "LostPeerError",
    "Memory",
    "MismatchError",
    "Mlp",
    "NativeStep",
    "NcclLibrary",
    "NoiseSpec",
    "Receive",
    "Records",
    "Round",
    "Schedule",
    "Send",
    "Sgd",
    "ShardedUpdate",
    "TimeoutError",
    "Transport",
    "UsageError",
    "add_noise",
    "adds_in_order_of_ranks",
    "algorithms",
    "array_pointer",
    "chacha20_block",
    "check_schedules",
    "chunks_for",
    "clip_sum",
    "default_timeout",
    "gather",
    "gaussian_pair",
    "host_device",
    "local_transports",
    "noise_isas",
    "philox4x32_block",
    "poisson_sample",
    "private_step",
    "routed_transport",
    "schedule_cost",
    "schedules",
    "seconds_to_add",
    "set_log_rank",
    "shm_transport",
    "update",
]

class Error(RuntimeError):
    pass

class UsageError(Error, ValueError):
    pass

class EnvironmentError(Error, OSError):
    pass

class MismatchError(Error):
    pass

class LostPeerError(Error):
    pass

class ClipRule:
    def __init__(
        self,
        norms: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
        stability: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    ) -> None: ...

class GhostSum:
    def __init__(
        self,
        layers: collections.abc.Sequence[
            tuple[
                typing.SupportsInt | typing.SupportsIndex,
                typing.SupportsInt | typing.SupportsIndex,
                typing.SupportsInt | typing.SupportsIndex,
                typing.SupportsInt | typing.SupportsIndex,
            ]
        ],
        threads: typing.SupportsInt | typing.SupportsIndex,
        isa: str = "auto",
    ) -> None: ...
    def add(
        self,
        uses: collections.abc.Sequence[
            tuple[
                typing.SupportsInt | typing.SupportsIndex,
                typing.SupportsInt | typing.SupportsIndex,
                typing.SupportsInt | typing.SupportsIndex,
                typing.SupportsInt | typing.SupportsIndex,
            ]
        ],
        samples: typing.SupportsInt | typing.SupportsIndex,
        scale: typing.SupportsFloat | typing.SupportsIndex,
        rule: ClipRule,
        norms: typing.SupportsInt | typing.SupportsIndex,
        accumulate: bool,
    ) -> int: ...

class Records:
    def __init__(
        self,
        segments: collections.abc.Sequence[
            tuple[
                typing.SupportsInt | typing.SupportsIndex,
                typing.SupportsInt | typing.SupportsIndex,
                typing.SupportsInt | typing.SupportsIndex,
                typing.SupportsInt | typing.SupportsIndex,
                typing.SupportsInt | typing.SupportsIndex,
            ]
        ],
    ) -> None: ...
    def __len__(self) -> int: ...

class Mlp:
    def __init__(
        self,
        layers: collections.abc.Sequence[
            tuple[
                typing.SupportsInt | typing.SupportsIndex,
                typing.SupportsInt | typing.SupportsIndex,
                bool,
                str,
            ]
        ],
        loss: str,
        threads: typing.SupportsInt | typing.SupportsIndex,
        isa: str = "auto",
    ) -> None: ...
    def clipped_sum(
        self,
        arg0: typing.SupportsInt | typing.SupportsIndex,
        arg1: Records,
        arg2: typing.Annotated[numpy.typing.ArrayLike, numpy.int64] | None,
        arg3: ClipRule,
        arg4: typing.SupportsInt | typing.SupportsIndex,
        arg5: typing.SupportsInt | typing.SupportsIndex,
        arg6: typing.SupportsInt | typing.SupportsIndex,
        arg7: bool,
    ) -> int: ...
    def evaluate(
        self,
        arg0: typing.SupportsInt | typing.SupportsIndex,
        arg1: Records,
        arg2: typing.Annotated[numpy.typing.ArrayLike, numpy.int64] | None,
        arg3: typing.SupportsInt | typing.SupportsIndex,
        arg4: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    def gradient_sum(
        self,
        arg0: typing.SupportsInt | typing.SupportsIndex,
        arg1: Records,
        arg2: typing.Annotated[numpy.typing.ArrayLike, numpy.int64] | None,
        arg3: typing.SupportsInt | typing.SupportsIndex,
        arg4: typing.SupportsInt | typing.SupportsIndex,
        arg5: bool,
    ) -> None: ...
    @property
    def parameters(self) -> int: ...

class NoiseSpec:
    """
    The noise of a step. Tells nobody its key.
    """
    def __init__(
        self,
        key: bytes,
        step: typing.SupportsInt | typing.SupportsIndex,
        std: typing.SupportsFloat | typing.SupportsIndex,
        generator: str = "chacha20",
    ) -> None: ...

class Blocks:
    def __init__(
        self,
        begin: typing.SupportsInt | typing.SupportsIndex,
        end: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    @property
    def begin(self) -> int: ...
    @begin.setter
    def begin(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def end(self) -> int: ...
    @end.setter
    def end(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...

class Combine:
    """
    Members:

      add

      copy
    """

    __members__: typing.ClassVar[dict[str, Combine]]
    add: typing.ClassVar[Combine]
    copy: typing.ClassVar[Combine]
    @typing.overload
    def __eq__(self, other: Combine) -> bool: ...
    @typing.overload
    def __eq__(self, other: typing.Any) -> bool: ...
    def __getstate__(self) -> int: ...
    def __hash__(self) -> int: ...
    def __index__(self) -> int: ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def __int__(self) -> int: ...
    @typing.overload
    def __ne__(self, other: Combine) -> bool: ...
    @typing.overload
    def __ne__(self, other: typing.Any) -> bool: ...
    def __repr__(self) -> str: ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def __str__(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...

class Send:
    blocks: Blocks
    def __init__(self, peer: typing.SupportsInt | typing.SupportsIndex, blocks: Blocks) -> None: ...
    @property
    def peer(self) -> int: ...
    @peer.setter
    def peer(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...

class Receive:
    blocks: Blocks
    combine: Combine
    def __init__(
        self, peer: typing.SupportsInt | typing.SupportsIndex, blocks: Blocks, combine: Combine
    ) -> None: ...
    @property
    def peer(self) -> int: ...
    @peer.setter
    def peer(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...

class Round:
    completes: Blocks
    def __init__(self) -> None: ...
    @property
    def receives(self) -> list[Receive]: ...
    @receives.setter
    def receives(self, arg0: collections.abc.Sequence[Receive]) -> None: ...
    @property
    def sends(self) -> list[Send]: ...
    @sends.setter
    def sends(self, arg0: collections.abc.Sequence[Send]) -> None: ...

class Schedule:
    @property
    def blocks(self) -> int: ...
    @blocks.setter
    def blocks(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def rank(self) -> int: ...
    @property
    def rounds(self) -> list[Round]: ...
    @rounds.setter
    def rounds(self, arg0: collections.abc.Sequence[Round]) -> None: ...
    @property
    def size(self) -> int: ...

class Goal:
    """
    Members:

      all_reduce

      reduce_scatter

      all_gather

      broadcast

      reduce
    """

    __members__: typing.ClassVar[dict[str, Goal]]
    all_gather: typing.ClassVar[Goal]
    all_reduce: typing.ClassVar[Goal]
    broadcast: typing.ClassVar[Goal]
    reduce: typing.ClassVar[Goal]
    reduce_scatter: typing.ClassVar[Goal]
    @typing.overload
    def __eq__(self, other: Goal) -> bool: ...
    @typing.overload
    def __eq__(self, other: typing.Any) -> bool: ...
    def __getstate__(self) -> int: ...
    def __hash__(self) -> int: ...
    def __index__(self) -> int: ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def __int__(self) -> int: ...
    @typing.overload
    def __ne__(self, other: Goal) -> bool: ...
    @typing.overload
    def __ne__(self, other: typing.Any) -> bool: ...
    def __repr__(self) -> str: ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def __str__(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...

class Cost:
    """
    What a schedule costs on its critical path.
    """
    def seconds(
        self,
        alpha: typing.SupportsFloat | typing.SupportsIndex,
        beta: typing.SupportsFloat | typing.SupportsIndex,
        gamma: typing.SupportsFloat | typing.SupportsIndex,
    ) -> float: ...
    @property
    def additions(self) -> float: ...
    @property
    def bytes(self) -> float: ...
    @property
    def messages(self) -> float: ...
    @property
    def rounds(self) -> int: ...

class Transport:
    """
    How ranks reach each other.
    """
    @property
    def name(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

class Device:
    """
    Memory of one kind, and who adds it up.
    """

class NcclLibrary:
    """
    NCCL, opened at run time.
    """
    def __init__(self, path: str) -> None:
        """
        EnvironmentError where it is missing or too old. DPCOMM_NCCL goes before `path`.
        """
    @property
    def version(self) -> int:
        """
        23004 is 2.30.4.
        """

class Memory:
    """
    Bytes that the peers see, for as long as it lives.
    """

class Communicator:
    """
    See dpcomm.comm.Communicator.
    """
    def __init__(
        self,
        transport: Transport,
        hosts: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    ) -> None: ...
    def abort(self, reason: str) -> None:
        """
        Ends every rank's collectives with this reason.
        """
    def all_gather(
        self,
        data: typing.SupportsInt | typing.SupportsIndex,
        out: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        dtype: str,
        op: str = "sum",
        algo: str = "",
        root: typing.SupportsInt | typing.SupportsIndex = 0,
        scale: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        stream: typing.SupportsInt | typing.SupportsIndex | None = None,
    ) -> None: ...
    def all_reduce(
        self,
        data: typing.SupportsInt | typing.SupportsIndex,
        out: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        dtype: str,
        op: str = "sum",
        algo: str = "",
        root: typing.SupportsInt | typing.SupportsIndex = 0,
        scale: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        stream: typing.SupportsInt | typing.SupportsIndex | None = None,
    ) -> None: ...
    def all_reduce_with(
        self,
        data: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        dtype: str,
        op: str,
        algo: str,
        epilogue: collections.abc.Callable[[int, int, int], None],
        stream: typing.SupportsInt | typing.SupportsIndex | None = None,
    ) -> None:
        """
        all_reduce in place, with an epilogue(pointer, offset, count).
        """
    def all_to_all(
        self,
        data: typing.SupportsInt | typing.SupportsIndex,
        out: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        dtype: str,
        op: str = "sum",
        algo: str = "",
        root: typing.SupportsInt | typing.SupportsIndex = 0,
        scale: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        stream: typing.SupportsInt | typing.SupportsIndex | None = None,
    ) -> None: ...
    def allocate(self, bytes: typing.SupportsInt | typing.SupportsIndex) -> Memory:
        """
        Memory; None where peers see none, or where they see all.
        """
    def barrier(self) -> None: ...
    def broadcast(
        self,
        data: typing.SupportsInt | typing.SupportsIndex,
        out: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        dtype: str,
        op: str = "sum",
        algo: str = "",
        root: typing.SupportsInt | typing.SupportsIndex = 0,
        scale: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        stream: typing.SupportsInt | typing.SupportsIndex | None = None,
    ) -> None: ...
    def close(self) -> None: ...
    def open_nccl(
        self,
        library: NcclLibrary,
        device: Device,
        max_ctas: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None:
        """
        From now on memory of `device`, which is current, goes over NCCL. Collective.
        """
    def reduce(
        self,
        data: typing.SupportsInt | typing.SupportsIndex,
        out: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        dtype: str,
        op: str = "sum",
        algo: str = "",
        root: typing.SupportsInt | typing.SupportsIndex = 0,
        scale: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        stream: typing.SupportsInt | typing.SupportsIndex | None = None,
    ) -> None: ...
    def reduce_scatter(
        self,
        data: typing.SupportsInt | typing.SupportsIndex,
        out: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        dtype: str,
        op: str = "sum",
        algo: str = "",
        root: typing.SupportsInt | typing.SupportsIndex = 0,
        scale: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        stream: typing.SupportsInt | typing.SupportsIndex | None = None,
    ) -> None: ...
    def set_deterministic(self) -> None: ...
    def split(
        self,
        color: typing.SupportsInt | typing.SupportsIndex,
        key: typing.SupportsInt | typing.SupportsIndex,
    ) -> Communicator: ...
    def time_all_reduce(
        self,
        data: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        dtype: str,
        algo: str,
        calls: typing.SupportsInt | typing.SupportsIndex,
    ) -> list[float]:
        """
        Seconds of each of `calls` sums in place, without Python; the data is overwritten.
        """
    def tune(
        self,
        operation: str,
        dtype: str,
        choices: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, str]],
    ) -> None:
        """
        Which algorithm up to how many bytes, rising; beyond, and with none, the default.
        """
    def untuned(self, operation: str, bytes: typing.SupportsInt | typing.SupportsIndex) -> str:
        """
        The algorithm that is taken where none is given and nothing was tuned.
        """
    @property
    def deterministic(self) -> bool: ...
    @property
    def hosts(self) -> list[int]:
        """
        The host of each rank.
        """
    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def transport(self) -> str: ...

class Sgd:
    """
    torch.optim.SGD without dampening.
    """
    def __init__(
        self,
        lr: typing.SupportsFloat | typing.SupportsIndex,
        momentum: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        weight_decay: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        nesterov: bool = False,
    ) -> None: ...

class Adam:
    """
    torch.optim.Adam, and AdamW by decoupled_weight_decay.
    """
    def __init__(
        self,
        lr: typing.SupportsFloat | typing.SupportsIndex = 0.001,
        beta1: typing.SupportsFloat | typing.SupportsIndex = 0.9,
        beta2: typing.SupportsFloat | typing.SupportsIndex = 0.999,
        eps: typing.SupportsFloat | typing.SupportsIndex = 1e-08,
        weight_decay: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        decoupled_weight_decay: bool = False,
        count: typing.SupportsInt | typing.SupportsIndex = 1,
    ) -> None: ...
    @property
    def count(self) -> int:
        """
        Of updates, with the next one.
        """
    @count.setter
    def count(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...

class ShardedUpdate:
    def __init__(
        self,
        communicator: Communicator,
        gradient: typing.SupportsInt | typing.SupportsIndex,
        parameters: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        states: typing.SupportsInt | typing.SupportsIndex,
        scale: typing.SupportsFloat | typing.SupportsIndex,
        algo: str,
        threads: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    def adopt(self) -> None: ...
    def gather(
        self,
        state: typing.SupportsInt | typing.SupportsIndex,
        out: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    def restore(
        self,
        state: typing.SupportsInt | typing.SupportsIndex,
        from_: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    def step(self, noise: NoiseSpec, optimizer: Sgd | Adam) -> None: ...

class NativeStep:
    def __call__(
        self,
        batch: typing.SupportsInt | typing.SupportsIndex,
        noise: NoiseSpec,
        optimizer: Sgd | Adam,
        rule: ClipRule | None = None,
    ) -> tuple[int, int, int]: ...
    def __init__(
        self,
        update: ShardedUpdate,
        mlp: Mlp,
        records: Records,
        sampling_key: bytes,
        sample_rate: typing.SupportsFloat | typing.SupportsIndex,
        begin: typing.SupportsInt | typing.SupportsIndex,
        end: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...

class TimeoutError(Error, builtins.TimeoutError):
    pass

def add_noise(
    data: typing.SupportsInt | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
    offset: typing.SupportsInt | typing.SupportsIndex,
    spec: NoiseSpec,
    scale: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    threads: typing.SupportsInt | typing.SupportsIndex = 1,
    isa: str = "auto",
) -> None: ...
def adds_in_order_of_ranks(algorithm: str) -> bool:
    """
    Whether all sums are in the order of ranks, the same bits for all such.
    """

def algorithms() -> list[str]:
    """
    The names of the all-reduce schedules.
    """

def array_pointer(array: numpy.ndarray) -> int:
    """
    Where a NumPy array's first element lies: array.ctypes.data, at a tenth of its time.
    """

def chacha20_block(
    key: bytes,
    input: typing.Annotated[
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(4)"
    ],
) -> typing.Annotated[list[int], "FixedSize(16)"]: ...
def check_schedules(
    ranks: collections.abc.Sequence[Schedule],
    goal: Goal,
    root: typing.SupportsInt | typing.SupportsIndex = 0,
) -> str:
    """
    What is wrong with the schedules; an empty string if nothing is.
    """

def chunks_for(algorithm: str, bytes: typing.SupportsInt | typing.SupportsIndex) -> int:
    """
    In how many parts a buffer is pipelined.
    """

def clip_sum(
    blocks: collections.abc.Sequence[
        tuple[
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
        ]
    ],
    rows: typing.SupportsInt | typing.SupportsIndex,
    dtype: str,
    rule: ClipRule,
    total: typing.SupportsInt | typing.SupportsIndex,
    norms: typing.SupportsInt | typing.SupportsIndex,
    threads: typing.SupportsInt | typing.SupportsIndex = 1,
    isa: str = "auto",
) -> int: ...
def default_timeout() -> float:
    """
    DPCOMM_TIMEOUT, or 60: seconds.
    """

def gather(
    rows: typing.Annotated[numpy.typing.ArrayLike, numpy.uint64],
    starts: typing.Annotated[numpy.typing.ArrayLike, numpy.int64],
    row_bytes: typing.SupportsInt | typing.SupportsIndex,
    ids: typing.Annotated[numpy.typing.ArrayLike, numpy.int64],
    out: typing.SupportsInt | typing.SupportsIndex,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def gaussian_pair(
    a: typing.SupportsInt | typing.SupportsIndex, b: typing.SupportsInt | typing.SupportsIndex
) -> tuple[float, float]: ...
def host_device() -> Device:
    """
    The memory of the CPU.
    """

def local_transports(
    size: typing.SupportsInt | typing.SupportsIndex,
    timeout: typing.SupportsFloat | typing.SupportsIndex,
) -> list[Transport]:
    """
    Transports for `size` threads of this process.
    """

def noise_isas() -> list[str]: ...
def philox4x32_block(
    counter: typing.Annotated[
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(4)"
    ],
    key: typing.Annotated[
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(2)"
    ],
) -> typing.Annotated[list[int], "FixedSize(4)"]: ...
def poisson_sample(
    key: bytes,
    step: typing.SupportsInt | typing.SupportsIndex,
    sample_rate: typing.SupportsFloat | typing.SupportsIndex,
    begin: typing.SupportsInt | typing.SupportsIndex,
    end: typing.SupportsInt | typing.SupportsIndex,
    isa: str = "auto",
) -> numpy.typing.NDArray[numpy.int64]: ...
def private_step(
    communicator: Communicator,
    data: typing.SupportsInt | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
    spec: NoiseSpec,
    scale: typing.SupportsFloat | typing.SupportsIndex,
    algo: str = "",
    threads: typing.SupportsInt | typing.SupportsIndex = 1,
    offset: typing.SupportsInt | typing.SupportsIndex = 0,
) -> None: ...
def routed_transport(
    near: Transport,
    far: Transport,
    hosts: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
) -> Transport:
    """
    `near` among the ranks of this host, `far` to all others.
    """

def schedule_cost(
    ranks: collections.abc.Sequence[Schedule], bytes: typing.SupportsFloat | typing.SupportsIndex
) -> Cost: ...
def schedules(
    operation: str,
    algorithm: str,
    size: typing.SupportsInt | typing.SupportsIndex,
    root: typing.SupportsInt | typing.SupportsIndex = 0,
    chunks: typing.SupportsInt | typing.SupportsIndex = 1,
    hosts: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
) -> list[Schedule]:
    """
    The schedules of ranks 0 to size-1, pipelined; hosts: of each rank, [] is all on one.
    """

def seconds_to_add(dtype: str, bytes: typing.SupportsInt | typing.SupportsIndex) -> float:
    """
    Seconds to add `bytes` to as many, on this core.
    """

def set_log_rank(
    rank: typing.SupportsInt | typing.SupportsIndex, size: typing.SupportsInt | typing.SupportsIndex
) -> None: ...
def shm_transport(
    key: str,
    rank: typing.SupportsInt | typing.SupportsIndex,
    size: typing.SupportsInt | typing.SupportsIndex,
    timeout: typing.SupportsFloat | typing.SupportsIndex,
) -> Transport:
    """
    Meets the other ranks of this host under `key`.
    """

def update(
    gradient: typing.SupportsInt | typing.SupportsIndex,
    parameters: typing.SupportsInt | typing.SupportsIndex,
    states: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    count: typing.SupportsInt | typing.SupportsIndex,
    offset: typing.SupportsInt | typing.SupportsIndex,
    spec: NoiseSpec,
    scale: typing.SupportsFloat | typing.SupportsIndex,
    optimizer: Sgd | Adam,
    threads: typing.SupportsInt | typing.SupportsIndex = 1,
    isa: str = "auto",
) -> None: ...
