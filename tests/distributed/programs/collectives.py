"""Every collective of the backend against Gloo's on the same tensors: collectives.py [INIT_METHOD].

Run under torchrun, or under mpirun with dpcomm://. Rank 0 prints what was held.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

import dpcomm.distributed

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.uint8)
MOVED = (*FLOATS, *INTEGERS, torch.bool, torch.int8, torch.int16, torch.complex64)
SUM, AVG, MAX, MIN = dist.ReduceOp.SUM, dist.ReduceOp.AVG, dist.ReduceOp.MAX, dist.ReduceOp.MIN


def drawn(dtype: torch.dtype, count: int, rank: int) -> torch.Tensor:
    """Small whole numbers, whose sums every dtype holds exactly, so that results must be equal."""
    generator = torch.Generator().manual_seed(1000 * count + rank)
    return torch.randint(0, 9, (count,), generator=generator).to(dtype)


def all_drawn(dtype: torch.dtype, count: int, group: dist.ProcessGroup) -> list[torch.Tensor]:
    return [drawn(dtype, count, rank) for rank in dist.get_process_group_ranks(group)]


def reduced(parts: list[torch.Tensor], op: dist.ReduceOp) -> torch.Tensor:
    stacked = torch.stack(parts).double()
    of = {SUM: stacked.sum(0), AVG: stacked.mean(0), MAX: stacked.amax(0), MIN: stacked.amin(0)}
    return of[op].to(parts[0].dtype)


def check_reductions(group: dist.ProcessGroup) -> None:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    for dtype in (*FLOATS, *INTEGERS):
        for op in (SUM, AVG, MAX, MIN):
            if op == AVG and dtype in INTEGERS:
                continue
            for count in (1, 8, 70_000):
                parts = all_drawn(dtype, size * count, group)
                expected = reduced(parts, op)
                mine = parts[rank].clone()
                dist.all_reduce(mine, op, group)
                assert torch.equal(mine, expected), (dtype, op, count)

                mine = parts[rank].clone()
                root = dist.get_global_rank(group, size - 1)
                dist.reduce(mine, root, op, group)
                assert rank != size - 1 or torch.equal(mine, expected), (dtype, op, count)

                piece = torch.empty(count, dtype=dtype)
                dist.reduce_scatter_tensor(piece, parts[rank], op, group)
                own = expected[rank * count : (rank + 1) * count]
                assert torch.equal(piece, own), (dtype, op, count)
                piece.zero_()
                dist.reduce_scatter(piece, list(parts[rank].chunk(size)), op, group)
                assert torch.equal(piece, own), (dtype, op, count)


def check_moves(group: dist.ProcessGroup) -> None:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    for dtype in MOVED:
        parts = all_drawn(dtype, size * 3, group)
        rows = torch.empty(size * size * 3, dtype=dtype)
        dist.all_gather_into_tensor(rows, parts[rank], group)
        assert torch.equal(rows, torch.cat(parts)), dtype
        gathered = [torch.empty_like(part) for part in parts]
        dist.all_gather(gathered, parts[rank], group)
        assert all(map(torch.equal, gathered, parts)), dtype

        root = size - 1
        sent = parts[rank].clone()
        dist.broadcast(sent, dist.get_global_rank(group, root), group)
        assert torch.equal(sent, parts[root]), dtype

        swapped = torch.empty_like(parts[rank])
        dist.all_to_all_single(swapped, parts[rank], group=group)
        expected = torch.cat([part.chunk(size)[rank] for part in parts])
        assert torch.equal(swapped, expected), dtype
    scalar = torch.tensor(float(rank))
    dist.broadcast(scalar, dist.get_global_rank(group, 0), group)
    assert scalar == 0


def check_uneven(group: dist.ProcessGroup) -> None:
    """Rank i sends i + j + 1 rows to rank j, and none to itself."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)

    def rows(sender: int, receiver: int) -> torch.Tensor:
        count = 0 if sender == receiver else sender + receiver + 1
        return torch.full((count, 2), float(10 * sender + receiver))

    sent = [rows(rank, peer) for peer in range(size)]
    expected = [rows(peer, rank) for peer in range(size)]
    received = [torch.empty_like(part) for part in expected]
    dist.all_to_all(received, sent, group)
    assert all(map(torch.equal, received, expected))
    whole = torch.empty_like(torch.cat(expected))
    splits = [len(part) for part in expected], [len(part) for part in sent]
    dist.all_to_all_single(whole, torch.cat(sent), *splits, group=group)
    assert torch.equal(whole, torch.cat(expected))


def check_the_rest(group: dist.ProcessGroup) -> None:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    objects = [None] * size
    dist.all_gather_object(objects, {"rank": rank}, group)
    assert [value["rank"] for value in objects] == list(range(size))
    told = ["said", rank] if rank == 0 else [None, None]
    dist.broadcast_object_list(told, dist.get_global_rank(group, 0), group)
    assert told == ["said", 0]
    dist.barrier(group)

    tensors = [torch.full((count,), float(rank)) for count in (3, 5)]
    with dist._coalescing_manager(group):
        for tensor in tensors:
            dist.all_reduce(tensor, group=group)
    for tensor in tensors:
        assert (tensor == sum(range(size))).all()

    scaled = torch.ones(5)
    dist.all_reduce(scaled, dist._make_nccl_premul_sum(0.5), group)
    assert (scaled == size / 2).all()

    works, tensors = [], [torch.full((1000,), float(rank + call)) for call in range(20)]
    for tensor in tensors:
        works.append(dist.all_reduce(tensor, group=group, async_op=True))
    then = works[-1].get_future().then(lambda done: float(done.value()[0][0]))
    for call, work in enumerate(works):
        work.wait()
        assert work.is_completed()
        assert work.is_success()
        assert (tensors[call] == sum(range(size)) + call * size).all()
    assert then.wait() == sum(range(size)) + 19 * size


def main() -> None:
    dist.init_process_group("dpcomm", *sys.argv[1:])
    assert dist.get_backend() == "dpcomm"
    world = dist.group.WORLD
    parts = [world]
    if world.size() > 2:
        parts += [dist.new_group([rank for rank in range(world.size()) if rank != 1])]
        parts += [dist.new_group([world.size() - 1, 0])]
    for group in parts:
        if dist.get_rank(group) >= 0:
            for check in (check_reductions, check_moves, check_uneven, check_the_rest):
                check(group)
    gloo = dist.new_group(backend="gloo")
    comm = dpcomm.from_process_group(gloo)
    assert (comm.rank, comm.size) == (dist.get_rank(), dist.get_world_size())
    assert comm.all_reduce(torch.ones(9))[8] == comm.size
    dist.barrier()
    if dist.get_rank() == 0:
        print(f"{world.comm.transport} of {world.size()} ranks holds")
    dist.destroy_process_group()
    dist.init_process_group("dpcomm", *sys.argv[1:])  # another, where the store is the same
    dist.barrier()


main()
