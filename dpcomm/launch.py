"""From a launcher to a communicator, and from an error on one rank to the end of the whole job.

`init()` understands mpirun, torchrun, srun and a process of its own. The ranks of one host talk
through shared memory, those of several through MPI. The only importer of mpi4py.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, ModuleType, TracebackType

import numpy as np

from dpcomm import _core
from dpcomm.comm import Communicator

# Exit codes of every command of ours.
WRONG_RESULT, USAGE, ENVIRONMENT, LOST_PEER, INTERRUPTED = 1, 2, 3, 4, 130

# Seconds between the last words of a rank and the end of all: mpirun drops what it has not yet
# passed on.
_DRAIN = 0.3

_MPIRUN = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")


@dataclass(frozen=True)
class Job:
    """What the launcher says: who we are, and what tells this job from any other on the host."""

    launcher: str
    rank: int
    size: int
    key: str = ""
    hosts: int = 1
    host_of: tuple[int, ...] = ()  # each rank's, where there is an MPI to say it


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would be."""


_meetings = 0  # calls of init() so far: all ranks count alike
_live: weakref.WeakSet[Communicator] = weakref.WeakSet()
_raised: _core.Error | None = None  # the first that was given to a waiter outside of Python
_mpi: ModuleType | None = None


def init(
    transport: str | None = None, timeout: float | None = None, deterministic: bool = False
) -> Communicator:
    """Meets the other ranks of the job and returns the communicator of all of them.

    Every rank calls it. `transport` is "shm" or "mpi"; None takes shared memory between ranks of
    one host, and MPI between hosts. `timeout` is the seconds that a rank waits for its peers in one
    collective, and here (default: DPCOMM_TIMEOUT, or 60). With `deterministic`, all_reduce and
    reduce_scatter add in the order of ranks unless an algorithm is given: an element's sum depends
    on its parts alone, not on the length of the buffer, the transport or a tuning.

    DPCOMM_TRANSPORT stands in for `transport`, and DPCOMM_TUNE=1 calls `tune()` at once.

    From here on an uncaught exception, Ctrl-C or SIGTERM on one rank ends every rank of the job.

    Raises UsageError for an unknown transport, EnvironmentError where a library is missing,
    TimeoutError when a rank does not come.
    """
    global _meetings
    transport = transport or os.environ.get("DPCOMM_TRANSPORT")
    seconds = _checked(transport, timeout)
    _meetings += 1
    job = detect(os.environ)
    if job.launcher == "mpirun":
        job = _meet_by_mpi(job, transport)
    elif transport == "mpi":
        raise _core.UsageError("transport 'mpi' needs mpirun: mpirun -np 8 python …")
    comm = _open(replace(job, key=f"{job.key}.{_meetings}"), transport, seconds)
    if deterministic:
        comm.core.set_deterministic()
    if job.launcher == "mpirun" and job.size > 1:
        _introduce(comm)
    if os.environ.get("DPCOMM_TUNE") == "1":
        comm.tune()
    return comm


def meet(
    rank: int,
    size: int,
    exchange: Callable[[str], list[str]],
    transport: str | None = None,
    timeout: float | None = None,
) -> Communicator:
    """The communicator of ranks that can reach each other already: `init` for other libraries.

    `exchange` takes what this rank says and returns what each has said, in the order of ranks. The
    ranks may be a part of the job where they are on one host; those of several hosts must be all
    that mpirun started, in its order.
    """
    seconds = _checked(transport, timeout)
    world = detect(os.environ)
    whole = world.launcher == "mpirun" and (world.rank, world.size) == (rank, size)
    said = [text.split() for text in exchange(f"{secrets.token_hex(16)} {_host()} {whole}")]
    hosts = list(dict.fromkeys(host for _, host, _ in said))
    host_of = tuple(hosts.index(host) for _, host, _ in said)
    launcher = "mpirun" if all(whole == "True" for _, _, whole in said) else "this group"
    if launcher != "mpirun" and transport == "mpi":
        raise _core.UsageError("transport 'mpi' needs a group of all ranks that mpirun started")
    return _open(Job(launcher, rank, size, said[0][0], len(hosts), host_of), transport, seconds)


def alone() -> Communicator:
    """The communicator of this process, whatever started it."""
    return Communicator(_core.Communicator(_core.local_transports(1, _core.default_timeout())[0]))


def _checked(transport: str | None, timeout: float | None) -> float:
    if transport not in (None, "shm", "mpi"):
        raise _core.UsageError(f"transport {transport!r} is unknown: use shm or mpi")
    seconds = _core.default_timeout() if timeout is None else float(timeout)
    if not seconds > 0:
        raise _core.UsageError(f"timeout {seconds} is no number of seconds: give a positive one")
    return seconds


def _open(job: Job, transport: str | None, seconds: float) -> Communicator:
    if not _live:  # a part of the job keeps the name that the whole has
        _core.set_log_rank(job.rank, job.size)
    comm = Communicator(_core.Communicator(_transport(job, transport, seconds), job.host_of))
    _guard(comm)
    return comm


def _host() -> str:
    """The same for all processes that can share memory: the machine, and its network namespace,
    through which they meet."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}.{os.stat('/proc/self/ns/net').st_ino}"


def detect(environment: Mapping[str, str]) -> Job:
    """Reads the launcher's variables. The innermost launcher counts."""

    def number(*names: str, default: int = 0) -> int:
        return next((int(environment[name]) for name in names if name in environment), default)

    if "TORCHELASTIC_RUN_ID" not in environment and any(name in environment for name in _MPIRUN):
        return Job("mpirun", number(*_MPIRUN), number("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"))
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
        size = number("WORLD_SIZE")
        hosts = -(-size // number("LOCAL_WORLD_SIZE", default=size))
        return Job("torchrun", number("RANK"), size, _key(environment, names), hosts)
    if "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        key = _key(environment, ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        size = number("SLURM_STEP_NUM_TASKS")
        hosts = number("SLURM_STEP_NUM_NODES", default=1)
        return Job("srun", number("SLURM_PROCID"), size, key, hosts)
    return Job("none", 0, 1)


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Around what every rank would say alike, as a command line's errors: only rank 0 is heard.

    Needs no communicator.
    """
    if detect(os.environ).rank == 0:
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _meet_by_mpi(job: Job, transport: str | None) -> Job:
    """Completes what mpirun's variables leave open. MPI is started even where shared memory will
    carry every message: it makes mpirun name the rank that dies."""
    if job.size == 1 and transport != "mpi":
        return job
    mpi = _start_mpi()
    key = mpi.broadcast(secrets.token_hex(16))
    host_of = tuple(mpi.hosts())
    return Job("mpirun", mpi.rank(), mpi.size(), key, len(set(host_of)), host_of)


def _key(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    text = "/".join(environment.get(name, "") for name in names)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _transport(job: Job, choice: str | None, seconds: float) -> _core.Transport:
    if choice == "mpi":
        return _start_mpi().transport(seconds)
    if job.size == 1:
        return _core.local_transports(1, seconds)[0]
    if job.hosts == 1:
        return _core.shm_transport(job.key, job.rank, job.size, seconds)
    if choice == "shm":
        raise _core.UsageError("transport 'shm' needs all ranks on one host: use mpi")
    if job.launcher != "mpirun":
        raise _core.EnvironmentError(
            f"{job.launcher} has ranks on several hosts, which talk through MPI: "
            "start them by mpirun"
        )
    far = _start_mpi().transport(seconds)
    if job.hosts == job.size:
        return far
    neighbours = [r for r, host in enumerate(job.host_of) if host == job.host_of[job.rank]]
    near = _core.shm_transport(
        f"{job.key}.{neighbours[0]}", neighbours.index(job.rank), len(neighbours), seconds
    )
    return _core.routed_transport(near, far, job.host_of)


def _start_mpi() -> ModuleType:
    """The module that is built against the MPI of this process, with MPI initialised.

    A process must not hold two MPI libraries, and a wheel of MPICH brings two (MPICH's own ABI and
    the standard one): where mpi4py is installed, it has chosen.
    """
    global _mpi
    if _mpi is not None:
        return _mpi
    try:
        mpi4py = importlib.import_module("mpi4py.MPI")
    except ImportError:
        mpi4py = None
    maps = Path("/proc/self/maps").read_text()
    names = ["_mpi_abi", "_mpi"]
    if mpi4py is not None:
        names = ["_mpi_abi"] if "libmpi_abi" in maps else ["_mpi"]
    for name in names:
        try:
            module = importlib.import_module(f"dpcomm.{name}")
        except ImportError as error:
            reason = str(error)
            continue
        if mpi4py is not None and not module.running():
            raise _core.EnvironmentError(
                f"dpcomm was built against another MPI ({module.library()}) than mpi4py uses "
                f"({mpi4py.Get_library_version()}): build dpcomm again in this environment"
            )
        if mpi4py is None:
            atexit.register(module.finish)
        module.start()
        module.hosts()  # all ranks have come: MPICH's segment is mapped everywhere
        _unlink_segments()
        _mpi = module
        return module
    raise _core.EnvironmentError(
        f"started by mpirun, but the MPI transport cannot be loaded ({reason}): "
        "pip install mpich mpi4py, then build dpcomm again"
    )


def _unlink_segments() -> None:
    """MPICH unlinks its shared memory when it finalises, which a job that is killed never does."""
    for name in set(re.findall(r"/dev/shm/mpich_shm_\S+", Path("/proc/self/maps").read_text())):
        Path(name).unlink(missing_ok=True)


def _introduce(comm: Communicator) -> None:
    """One line that says which process is which rank. When one is killed, mpirun kills the others
    before they can name it, and itself only tells the pid."""
    pids = comm.all_gather(np.array([os.getpid()], np.int64))
    if comm.rank == 0:
        ranks = ", ".join(f"rank {rank} is pid {pid}" for rank, pid in enumerate(pids))
        print(f"dpcomm: {comm.size} ranks over {comm.transport}: {ranks}", file=sys.stderr)


def _guard(comm: Communicator) -> None:
    """From now on no rank ends alone."""
    _live.add(comm)
    atexit.register(_leave, weakref.ref(comm))
    if sys.excepthook is _end_job:
        return
    sys.excepthook = _end_job
    if threading.current_thread() is not threading.main_thread():
        return
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    for number, default in defaults.items():
        if signal.getsignal(number) is default:
            signal.signal(number, _interrupt)


def _leave(reference: weakref.ref[Communicator]) -> None:
    if (comm := reference()) is not None:
        comm.close()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises the signal, save where it would stop the end of the job: another rank's error, or an
    earlier signal, is often there first, for the terminal and mpirun each send one."""
    while frame is not None and frame.f_code is not _end_job.__code__:
        frame = frame.f_back
    if frame is not None:
        return
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def exit_code(error: BaseException) -> int:
    """The exit code of a process that `error` ends."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, (_core.MismatchError, _core.LostPeerError, _core.TimeoutError)):
        return LOST_PEER
    if isinstance(error, _core.EnvironmentError):
        return ENVIRONMENT
    return USAGE if isinstance(error, _core.UsageError) else WRONG_RESULT


def remember(error: BaseException) -> None:
    """Before an error goes to a waiter in torch's C++, which knows only its text: DDP raises a
    RuntimeError with that in it, and the job is to end as by the error itself."""
    global _raised
    if _raised is None and isinstance(error, _core.Error):
        _raised = error


def who(rank: int, size: int) -> str:
    """How this process calls itself in messages: rank 3/8 (host a17, pid 4121)."""
    return f"rank {rank}/{size} (host {socket.gethostname()}, pid {os.getpid()})"


def _end_job(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook: says which rank ends and why, then ends all of them."""
    if type(error) is RuntimeError and _raised is not None and str(_raised) in str(error):
        error = _raised
    # Not sys.stderr: torch's hook around this one collects that, to print it after we have ended.
    stderr = sys.__stderr__ or sys.stderr
    if not isinstance(error, (_core.Error, KeyboardInterrupt)):
        traceback.print_exception(kind, error, trace, file=stderr)
    text = str(error) if isinstance(error, _core.Error) else f"{kind.__name__}: {error}"
    if isinstance(error, KeyboardInterrupt):
        text = "interrupted by " + ("SIGTERM" if isinstance(error, Terminated) else "Ctrl-C")
    comms = list(_live)
    size, rank = max(((comm.size, comm.rank) for comm in comms), default=(1, 0))
    sys.stdout.flush()
    stderr.write(f"dpcomm: {who(rank, size)}: {text}\n")
    stderr.flush()
    for comm in comms:
        comm.core.abort(text)
    code = exit_code(error)
    if _mpi is not None and _mpi.running():
        time.sleep(_DRAIN)
        _mpi.abort(code)
    os._exit(code)
