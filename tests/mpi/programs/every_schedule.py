"""Each schedule over each transport against NumPy's float64 sum, and the same bits everywhere.

Run under mpirun; `without-mpi4py` makes dpcomm initialise MPI itself.
"""

from __future__ import annotations

import hashlib
import sys

import numpy as np

if "without-mpi4py" in sys.argv:
    sys.modules["mpi4py"] = None  # type: ignore[assignment]

import dpcomm
from dpcomm import _core, launch

COUNTS = (0, 1, 2, 7, 1000, 1_000_003)


def check_sum(comm: dpcomm.Communicator, algorithm: str, count: int) -> None:
    parts = [
        np.random.default_rng([rank, count]).standard_normal(count, np.float32)
        for rank in range(comm.size)
    ]
    exact = np.zeros(count)
    magnitude = np.zeros(count)
    for part in parts:
        exact += part
        magnitude += np.abs(part)
    own = np.empty(count + comm.rank, np.float32)[comm.rank :]  # elsewhere in a line on each rank
    own[:] = parts[comm.rank]
    result = comm.all_reduce(own, algo=algorithm)
    # Each of the size-1 additions rounds a partial sum that is no larger than `magnitude`.
    bound = comm.size * np.finfo(np.float32).eps * magnitude
    worst = np.flatnonzero(np.abs(result - exact) > bound)
    assert worst.size == 0, (algorithm, count, comm, worst[:3])

    digest = np.frombuffer(hashlib.sha256(result.tobytes()).digest(), np.uint8).copy()
    same = comm.all_gather(digest).reshape(comm.size, -1)
    assert (same == digest).all(), f"{algorithm} {count} {comm}: not the same bits on every rank"


def check_registered(comm: dpcomm.Communicator, count: int, mixed: bool) -> None:
    """In memory of `empty`, on all ranks or on all but the last: the bits of any other buffer."""
    own = np.random.default_rng([comm.rank, count]).standard_normal(count, np.float32)
    algo = "round_robin"
    private = comm.all_reduce(own.copy(), algo=algo)
    given = own if mixed and comm.rank == comm.size - 1 else comm.empty(count)
    given[:] = own
    out = comm.empty(count)
    assert comm.transport != "shm" or out.ctypes.data % 64 == 0, "not on a cache line"
    assert comm.all_reduce(given, algo=algo, out=out) is out
    assert out.tobytes() == private.tobytes()
    assert given.tobytes() == own.tobytes()
    assert comm.all_reduce(given, algo=algo).tobytes() == private.tobytes()


def check_others(comm: dpcomm.Communicator, count: int, registered: bool) -> None:
    """The other collectives, from memory that peers see or do not see; small integers are exact."""
    size, rank = comm.size, comm.rank
    whole = np.stack(
        [np.random.default_rng([r, count]).integers(0, 9, size * count) for r in range(size)]
    ).astype(np.float32)

    def array(values: np.ndarray) -> np.ndarray:
        made = comm.empty(values.shape) if registered else np.empty_like(values)
        made[:] = values
        return made

    own, mine = array(whole[rank]), slice(rank * count, (rank + 1) * count)
    total, root = whole.sum(0), size - 1
    assert (comm.reduce_scatter(own) == total[mine]).all()
    assert (comm.reduce_scatter(own, op="max") == whole.max(0)[mine]).all()
    assert (comm.all_to_all(own) == whole.reshape(size, size, count)[:, rank].ravel()).all()
    assert (comm.all_gather(own) == whole.ravel()).all()
    assert (comm.reduce(own, root=root) == (total if rank == root else whole[rank])).all()
    own[:] = whole[rank]
    comm.reduce_scatter(own, out=own[mine], op="mean")
    assert np.allclose(own[mine], total[mine] / size)
    own[:] = whole[rank]
    diagonal = whole.reshape(size, size, count)[range(size), range(size)]
    assert (comm.all_gather(own[mine], out=own) == diagonal.ravel()).all()
    own[:] = whole[rank]
    scales = 1 + np.arange(size)
    assert (comm.all_reduce(own, scale=1.0 + rank) == scales @ whole).all()
    assert (comm.broadcast(own * (rank + 1), root=root) == size * (scales @ whole)).all()
    assert (
        comm.reduce(array(whole[rank]), root=0, scale=0.5)[:9]
        == (total / 2 if rank == 0 else whole[rank])[:9]
    ).all()


def main() -> None:
    for transport in ("shm", "mpi"):
        comm = dpcomm.init(transport)
        assert comm.size == 1 or comm.transport == transport
        for algorithm in _core.algorithms():
            for count in COUNTS:
                check_sum(comm, algorithm, count)
        for mixed in (False, True):
            for count in COUNTS:
                check_registered(comm, count, mixed)
                check_others(comm, min(count, 300_003), registered=mixed)
        half = comm.split(comm.rank % 2)
        assert comm.size == 1 or half.transport == comm.transport
        alike = range(comm.rank % 2, comm.size, 2)
        assert half.all_reduce(np.array([comm.rank]))[0] == sum(alike)
        assert comm.all_to_all(np.arange(comm.size)).tolist() == [comm.rank] * comm.size
        assert comm.all_reduce(np.ones(9), async_op=True).wait()[8] == comm.size
        if comm.rank == 0:
            module = launch._mpi.__name__ if launch._mpi else "none"
            print(f"{transport} of {comm.size} ranks holds, {module}")


main()
