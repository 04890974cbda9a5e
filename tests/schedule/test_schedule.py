"""Every schedule is proved on symbols, and the proof is shown to see planted faults."""

from __future__ import annotations

import math
import re

import pytest

from dpcomm import _core
from dpcomm._core import Blocks, Combine, Goal, Receive, Send

SIZES = range(1, 65)


@pytest.mark.parametrize("algorithm", _core.algorithms())
def test_all_reduce_is_proved_for_1_to_64_ranks(algorithm):
    for size in SIZES:
        ranks = _core.schedules("all_reduce", algorithm, size)
        assert _core.check_schedules(ranks, Goal.all_reduce) == "", f"{size} ranks"


@pytest.mark.parametrize("chunks", [2, 5])
@pytest.mark.parametrize("algorithm", _core.algorithms())
def test_pipelined_it_is_proved_too(algorithm, chunks):
    for size in (1, 2, 3, 4, 7, 8, 13, 32):
        ranks = _core.schedules("all_reduce", algorithm, size, chunks=chunks)
        assert _core.check_schedules(ranks, Goal.all_reduce) == "", f"{size} ranks"
        single = _core.schedules("all_reduce", algorithm, size)[0]
        assert len(ranks[0].rounds) == len(single.rounds) + chunks - 1


HOSTS = [
    [0, 0, 0, 0],
    [0, 1],
    [0, 1, 0, 1, 0],  # in turns
    [7, 7, 7, 2],  # uneven, any numbers
    [0] * 5 + [1] * 1 + [2] * 3,
    [rank // 8 for rank in range(64)],
    [rank % 3 for rank in range(64)],
    [max(0, rank - 40) for rank in range(64)],
]


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("hosts", HOSTS, ids=lambda hosts: f"{len(set(hosts))}of{len(hosts)}")
def test_the_hierarchical_one_is_proved_over_hosts_of_any_shape(hosts, chunks):
    ranks = _core.schedules("all_reduce", "hierarchical", len(hosts), chunks=chunks, hosts=hosts)
    assert _core.check_schedules(ranks, Goal.all_reduce) == ""


@pytest.mark.parametrize("hosts", HOSTS, ids=lambda hosts: f"{len(set(hosts))}of{len(hosts)}")
def test_between_hosts_only_leaders_talk(hosts):
    ranks = _core.schedules("all_reduce", "hierarchical", len(hosts), hosts=hosts)
    leaders = {hosts.index(host) for host in hosts}
    for rank in ranks:
        for send in (send for one in rank.rounds for send in one.sends):
            assert hosts[send.peer] == hosts[rank.rank] or {send.peer, rank.rank} <= leaders


@pytest.mark.parametrize("size", range(2, 65))
def test_who_has_children_in_one_of_the_two_trees_is_a_leaf_of_the_other(size):
    for rank in _core.schedules("all_reduce", "double_tree", size):
        inner = {
            receive.blocks.begin
            for one in rank.rounds
            for receive in one.receives
            if receive.combine == Combine.add
        }
        assert len(inner) <= 1


@pytest.mark.parametrize("algorithm", ["ring", "round_robin"])
@pytest.mark.parametrize("operation", ["reduce_scatter", "all_gather"])
def test_halves_are_proved_for_1_to_64_ranks(operation, algorithm):
    for size in SIZES:
        ranks = _core.schedules(operation, algorithm, size)
        assert _core.check_schedules(ranks, getattr(Goal, operation)) == "", f"{size} ranks"


@pytest.mark.parametrize("operation", ["broadcast", "reduce"])
def test_rooted_operations_are_proved_for_every_root(operation):
    for size in SIZES:
        for root in {0, 1 % size, size // 2, size - 1}:
            ranks = _core.schedules(operation, "tree", size, root)
            goal = getattr(Goal, operation)
            assert _core.check_schedules(ranks, goal, root) == "", f"{size} ranks, root {root}"


def test_halves_without_one_block_a_rank_are_refused_by_name():
    with pytest.raises(ValueError, match="reduce_scatter has no schedule 'tree'"):
        _core.schedules("reduce_scatter", "tree", 4)
    with pytest.raises(ValueError, match="algorithm 'rings' is unknown"):
        _core.schedules("all_reduce", "rings", 4)


# Faults, each planted into ring or butterfly of four ranks.


def drop_send(ranks):
    change(ranks[1], 0, sends=[])


def drop_receive(ranks):
    change(ranks[1], 0, receives=[])


def send_other_blocks(ranks):
    change(ranks[0], 0, sends=[Send(1, Blocks(1, 2))])


def copy_where_it_should_add(ranks):
    (receive,) = ranks[2].rounds[0].receives
    change(ranks[2], 0, receives=[Receive(receive.peer, receive.blocks, Combine.copy)])


def add_where_it_should_copy(ranks):
    last = len(ranks[2].rounds) - 1
    (receive,) = ranks[2].rounds[last].receives
    change(ranks[2], last, receives=[Receive(receive.peer, receive.blocks, Combine.add)])


def forget_the_epilogue(ranks):
    for index, rounds in enumerate(ranks[3].rounds):
        if rounds.completes.end > rounds.completes.begin:
            change(ranks[3], index, completes=Blocks(0, 0))


def call_the_epilogue_too_early(ranks):
    change(ranks[0], 0, completes=Blocks(0, 1))


def lose_the_last_round(ranks):
    for rank in ranks:
        rank.rounds = rank.rounds[:-1]


def change(schedule, index, **fields):
    rounds = schedule.rounds
    for name, value in fields.items():
        setattr(rounds[index], name, value)
    schedule.rounds = rounds


@pytest.mark.parametrize("algorithm", ["ring", "butterfly"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (drop_send, "is not what that rank receives"),
        (drop_receive, "is not what that rank receives"),
        (send_other_blocks, "is not what that rank receives"),
        (copy_where_it_should_add, "completes block . too early"),
        (add_where_it_should_copy, "after its epilogue"),
        (forget_the_epilogue, "ends without the whole of block|adds"),
        (call_the_epilogue_too_early, "completes block 0 too early"),
        (lose_the_last_round, "ends without the whole of block"),
    ],
)
def test_the_check_sees_a_planted_fault(algorithm, fault, message):
    ranks = _core.schedules("all_reduce", algorithm, 4)
    fault(ranks)
    found = _core.check_schedules(ranks, Goal.all_reduce)
    assert re.search(message, found), found


def by_hand(size, blocks, *rounds):
    """Schedules from messages (from, to, begin, end, combine); rank 0 completes all in round 0."""
    ranks = _core.schedules("all_reduce", "naive", size)
    for rank in ranks:
        rank.blocks = blocks
        made = []
        for index, messages in enumerate(rounds):
            one = _core.Round()
            one.sends = [Send(to, Blocks(b, e)) for by, to, b, e, _ in messages if by == rank.rank]
            one.receives = [
                Receive(by, Blocks(b, e), how) for by, to, b, e, how in messages if to == rank.rank
            ]
            if index == 0 and rank.rank == 0:
                one.completes = Blocks(0, blocks)
            made.append(one)
        rank.rounds = made
    return ranks


ADD, COPY = Combine.add, Combine.copy


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (by_hand(2, 1, [(1, 0, 0, 1, ADD)], [(0, 1, 0, 1, COPY)]), "^$"),
        (  # rank 0 loses the whole, and gets it back from rank 1
            by_hand(
                3,
                1,
                [(1, 0, 0, 1, ADD), (2, 0, 0, 1, ADD)],
                [(0, 1, 0, 1, COPY)],
                [(2, 0, 0, 1, COPY)],
                [(1, 0, 0, 1, COPY), (1, 2, 0, 1, COPY)],
            ),
            "round 2, rank 0: copies a part over block 0 after its epilogue",
        ),
        (  # equals are exchanged, over each other
            by_hand(
                2,
                1,
                [(1, 0, 0, 1, ADD)],
                [(0, 1, 0, 1, COPY)],
                [(0, 1, 0, 1, COPY), (1, 0, 0, 1, COPY)],
            ),
            "round 2, rank 0: receives into block 0 what it sends meanwhile",
        ),
        (  # a message of both blocks, and one of each the other way
            by_hand(
                2,
                2,
                [(0, 1, 0, 2, ADD), (1, 0, 0, 1, ADD), (1, 0, 1, 2, ADD)],
                [(0, 1, 0, 2, COPY)],
            ),
            "round 0, rank 0: receives into block 0 what it sends meanwhile",
        ),
        (  # twice the same copy
            by_hand(2, 1, [(1, 0, 0, 1, ADD)], [(0, 1, 0, 1, COPY), (0, 1, 0, 1, COPY)]),
            "round 1, rank 1: receives into block 0 what else comes meanwhile",
        ),
    ],
)
def test_the_check_sees_messages_that_would_race(ranks, message):
    found = _core.check_schedules(ranks, Goal.all_reduce)
    assert re.search(message, found), found


@pytest.mark.parametrize("size", [2, 3, 4, 8, 13, 64])
def test_the_cost_read_off_the_rounds_is_the_textbook_one(size):
    """Bytes and rounds of Thakur, Rabenseifner and Gropp (2005), table 1, for n = 1."""

    def cost(algorithm):
        return _core.schedule_cost(_core.schedules("all_reduce", algorithm, size), 1.0)

    share = (size - 1) / size
    for algorithm, rounds in (("ring", 2 * (size - 1)), ("round_robin", 2)):
        assert cost(algorithm).rounds == rounds
        assert cost(algorithm).bytes == pytest.approx(2 * share)
        assert cost(algorithm).additions == pytest.approx(share)
    assert cost("naive").bytes == size - 1
    assert cost("tree").rounds == 2 * math.ceil(math.log2(size))
    if size.bit_count() == 1:
        assert cost("butterfly").rounds == 2 * math.log2(size)
        assert cost("butterfly").bytes == pytest.approx(2 * share)
        assert cost("recursive_doubling").bytes == math.log2(size)


@pytest.mark.parametrize("size", [4, 8, 13, 32, 64])
def test_the_pipelined_double_tree_moves_the_ring_s_bytes_in_few_rounds(size):
    """Full bandwidth, as Sanders, Speck and Träff (2009) prove: each way n bytes a rank, and no
    round in which one waits for a level that others work at."""
    chunks = 64
    ranks = _core.schedules("all_reduce", "double_tree", size, chunks=chunks)
    assert len(ranks[0].rounds) == 2 * math.floor(math.log2(size)) + chunks - 1
    for rank in ranks:
        sent = sum(send.blocks.end - send.blocks.begin for one in rank.rounds for send in one.sends)
        assert sent / rank.blocks <= 2.0


def test_seconds_are_messages_bytes_and_additions():
    cost = _core.schedule_cost(_core.schedules("all_reduce", "ring", 4), 4e6)
    assert cost.seconds(1e-6, 0, 0) == pytest.approx(6e-6)
    assert cost.seconds(0, 1e-9, 0) == pytest.approx(6e-3)
    assert cost.seconds(0, 0, 1e-9) == pytest.approx(3e-3)
