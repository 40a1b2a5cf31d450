"""Membership as a pure state machine, and rates."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshard.errors import ConfigError
from moonshard.placed import Placement
from moonshard.router.members import (
    Credits,
    Members,
    Outgoing,
    Role,
    ShardCopy,
    Vitals,
    Welcome,
    Worker,
    WorkerId,
    WorkerState,
)
from moonshard.router.membership import Membership
from moonshard.router.rates import RateWindow
from moonshard.topology import Topology

TOPOLOGY = Topology(num_experts=12, num_shards=3, num_attention=2)
SHARDS = [WorkerId(Role.EXPERT, rank) for rank in range(3)]
ATTENTION = [WorkerId(Role.ATTENTION, rank) for rank in range(2)]
CREDITS = Credits(block_size=16, num_blocks=4, max_num_seqs=2, max_step_tokens=8)


def _worker(worker_id: WorkerId) -> Worker:
    experts = TOPOLOGY.experts_of(worker_id.rank % 3) if worker_id.role is Role.EXPERT else range(0)
    return Worker(worker_id, 7, "here", "here:1", experts, "c")


def _ready(state: Membership, worker_id: WorkerId) -> tuple[Membership, list[Outgoing]]:
    if worker_id.role is Role.EXPERT:
        return state.ready(worker_id, f"unix:/{worker_id}", None)
    return state.ready(worker_id, "", CREDITS)


def _formed(topology: Topology = TOPOLOGY) -> Membership:
    state = Membership(topology, "c")
    experts = [WorkerId(Role.EXPERT, rank) for rank in range(topology.num_expert_workers)]
    for worker_id in (*experts, *ATTENTION):
        state, _ = state.join(_worker(worker_id))
    for worker_id in (*experts, *ATTENTION):
        state, _ = _ready(state, worker_id)
    return state


def _told(messages: Sequence[Outgoing]) -> list[tuple[WorkerId, int, list[int]]]:
    """To whom, of which epoch, with which shards."""
    return [
        (it.to, it.message.epoch, [copy.shard for copy in it.message.copies])
        for it in messages
        if isinstance(it.message, Members)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_joining_ends_ready_with_one_members_message_each(seed: int) -> None:
    state, sent = Membership(TOPOLOGY, "c"), list[Outgoing]()
    everybody = [*SHARDS, *ATTENTION]
    random.Random(seed).shuffle(everybody)
    for worker_id in everybody:
        state, messages = state.join(_worker(worker_id))
        assert messages[0] == Outgoing(worker_id, Welcome(state.epoch))
        sent += messages[1:]
        if worker_id.role is Role.EXPERT:
            state, messages = _ready(state, worker_id)
            sent += messages
    members = Members(1, tuple(ShardCopy(shard, 0, f"unix:/expert-{shard}") for shard in range(3)))
    assert sorted(sent, key=str) == [Outgoing(worker_id, members) for worker_id in ATTENTION]
    assert state.coverage.complete
    assert not state.is_ready
    for worker_id in ATTENTION:
        state, _ = _ready(state, worker_id)
    assert state.is_ready
    assert state.describe_missing() == ""
    assert state.kv_capacity == 64


def test_a_loss_starts_the_next_epoch_and_a_return_completes_it() -> None:
    state, messages = _formed().lost(SHARDS[1])
    assert (state.epoch, state.is_ready, state.coverage.num_covered) == (2, False, 8)
    assert _told(messages) == [(worker_id, 2, [0, 2]) for worker_id in ATTENTION]
    assert state.describe_missing() == "expert-1 has not joined"
    state, messages = state.join(_worker(SHARDS[1]))
    assert messages == [Outgoing(SHARDS[1], Welcome(2))]
    state, messages = _ready(state, SHARDS[1])
    assert _told(messages) == [(worker_id, 3, [0, 1, 2]) for worker_id in ATTENTION]
    assert (state.epoch, state.is_ready) == (3, True)


def test_an_attention_worker_that_starts_anew_meets_the_shards_when_all_are_there() -> None:
    state, messages = _formed().lost(ATTENTION[0])
    assert (state.is_ready, messages) == (True, [])
    state, _ = state.lost(SHARDS[2])
    state, messages = state.join(_worker(ATTENTION[0]))
    assert _told(messages) == []
    state, _ = state.join(_worker(SHARDS[2]))
    state, messages = _ready(state, SHARDS[2])
    assert _told(messages) == [(worker_id, 4, [0, 1, 2]) for worker_id in ATTENTION]


def test_a_router_that_is_started_again_goes_beyond_the_epoch_its_workers_know() -> None:
    state = Membership(TOPOLOGY, "c")
    for worker_id, known in zip((*SHARDS, *ATTENTION), (3, 3, 3, 7, 7), strict=True):
        state, messages = state.join(replace(_worker(worker_id), epoch=known))
        if worker_id.role is Role.EXPERT:
            state, _ = _ready(state, worker_id)
        else:
            assert _told(messages) == [(worker_id, 8, [0, 1, 2])]
    assert state.epoch == 8


def test_a_cell_without_attention_workers_is_not_ready() -> None:
    state, _ = _formed().lost(ATTENTION[0])
    state, _ = state.lost(ATTENTION[1])
    assert not state.is_ready
    assert state.coverage.complete


def test_a_loss_before_the_cell_is_formed_is_told_to_nobody() -> None:
    state, _ = Membership(TOPOLOGY, "c").join(_worker(ATTENTION[0]))
    state, _ = state.join(_worker(SHARDS[0]))
    state, _ = _ready(state, SHARDS[0])
    state, messages = state.lost(SHARDS[0])
    assert (state.epoch, messages) == (2, [])


def test_replicas_keep_coverage_while_one_copy_of_each_shard_is_there() -> None:
    topology = Topology(num_experts=12, num_shards=3, num_attention=2, num_replicas=2)
    state = _formed(topology)
    assert (state.coverage.min_copies, state.coverage.max_copies) == (2, 2)
    state, messages = state.lost(WorkerId(Role.EXPERT, 1))
    assert _told(messages) == [(worker_id, 2, [0, 2, 0, 1, 2]) for worker_id in ATTENTION]
    assert state.is_ready
    assert (state.coverage.min_copies, state.coverage.max_copies) == (1, 2)
    state, _ = state.lost(WorkerId(Role.EXPERT, 4))
    assert not state.is_ready
    assert state.coverage.num_covered == 8


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=30))
def test_whatever_comes_and_goes_epochs_grow_and_members_are_those_that_are_ready(
    events: list[tuple[bool, int]],
) -> None:
    topology = Topology(num_experts=12, num_shards=3, num_attention=2, num_replicas=2)
    state = _formed(topology)
    everybody = [*(WorkerId(Role.EXPERT, rank) for rank in range(6)), *ATTENTION]
    for comes, number in events:
        worker_id, epoch = everybody[number], state.epoch
        if comes == (worker_id in state.workers):
            continue
        if comes:
            state, _ = state.join(_worker(worker_id))
            state, messages = _ready(state, worker_id)
        else:
            state, messages = state.lost(worker_id)
        present = sorted(it.rank % 3 for it in state.workers if it.role is Role.EXPERT)
        assert state.epoch == epoch + (worker_id.role is Role.EXPERT or not comes)
        assert all((told, sorted(shards)) == (state.epoch, present) for _, told, shards in _told(messages))
        has_attention = any(it in state.workers for it in ATTENTION)
        assert state.is_ready == (set(present) == {0, 1, 2} and has_attention)


def test_heartbeats_change_nothing_but_vitals() -> None:
    state = _formed()
    after = state.heartbeat(SHARDS[0], Vitals(tokens=9))
    assert after.workers[SHARDS[0]].vitals.tokens == 9
    assert (after.epoch, after.is_ready) == (state.epoch, True)
    assert after.workers[SHARDS[0]].state is WorkerState.READY


def test_ready_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="expert-0 is ready already"):
        _ready(_formed(), SHARDS[0])


def _group() -> tuple[Membership, list[Outgoing]]:
    """On all_to_all, with the first group just told."""
    state, sent = Membership(TOPOLOGY, "c", needs_addresses=False), list[Outgoing]()
    for worker_id in (*SHARDS, *ATTENTION):
        state, _ = state.join(_worker(worker_id))
    for shard in SHARDS:
        state, messages = state.ready(shard, "", None)
        sent += messages
    for worker_id in ATTENTION:
        assert sent == [], "the first group waits for everybody"
        state, messages = state.loaded(worker_id)
        sent += messages
    return state, sent


def _grouped(messages: Sequence[Outgoing]) -> tuple[set[WorkerId], set[tuple[int, tuple[int, ...]]]]:
    """To whom, of which epochs with which attention workers."""
    told = [(it.to, it.message) for it in messages if isinstance(it.message, Members)]
    return {to for to, _ in told}, {(message.epoch, message.attention) for _, message in told}


def test_a_group_is_told_to_every_rank_once_all_have_loaded() -> None:
    state, sent = _group()
    assert _grouped(sent) == ({*SHARDS, *ATTENTION}, {(1, (0, 1))})
    assert not state.is_ready
    for worker_id in ATTENTION:
        state, messages = state.ready(worker_id, "", CREDITS)
        assert messages == []
    assert state.is_ready


def test_a_lost_shard_ends_the_group_and_its_return_begins_the_next() -> None:
    state, _ = _group()
    state, messages = state.lost(SHARDS[1])
    assert _grouped(messages) == ({SHARDS[0], SHARDS[2], *ATTENTION}, {(2, ())})
    state, messages = state.join(_worker(SHARDS[1]))
    assert _grouped(messages) == (set(), set())
    state, messages = state.ready(SHARDS[1], "", None)
    assert _grouped(messages) == ({*SHARDS, *ATTENTION}, {(3, (0, 1))})


def test_a_lost_attention_worker_is_done_without_until_it_has_loaded() -> None:
    state, _ = _group()
    state, messages = state.lost(ATTENTION[0])
    assert _grouped(messages) == ({*SHARDS, ATTENTION[1]}, {(2, (1,))})
    state, _ = state.join(_worker(ATTENTION[0]))
    gone, messages = state.lost(ATTENTION[0])
    assert (gone.epoch, messages) == (2, []), "it was in no group"
    state, messages = state.loaded(ATTENTION[0])
    assert _grouped(messages) == ({*SHARDS, *ATTENTION}, {(3, (0, 1))})


def test_a_group_that_broke_of_itself_is_followed_by_one_however_many_say_so() -> None:
    state, _ = _group()
    state, messages = state.group_lost(1)
    assert _grouped(messages) == ({*SHARDS, *ATTENTION}, {(2, (0, 1))})
    assert state.group_lost(1) == (state, [])


def test_only_an_attention_worker_that_loads_can_have_loaded() -> None:
    state, _ = _group()
    with pytest.raises(ConfigError, match="attention-0 is loaded, expected a loading attention worker"):
        state.loaded(ATTENTION[0])
    with pytest.raises(ConfigError, match="expert-0 is ready"):
        state.loaded(SHARDS[0])


def test_on_links_nobody_waits_for_a_group() -> None:
    state, _ = Membership(TOPOLOGY, "c").join(_worker(ATTENTION[0]))
    state, messages = state.loaded(ATTENTION[0])
    assert messages == []
    assert "attention-0 waits for the shards" in state.describe_missing()


def test_what_is_missing_is_cut_short() -> None:
    state = Membership(Topology(16, 8, 1), "c")
    assert state.describe_missing().endswith("expert-3 has not joined and 5 more")


def test_rates_look_back_over_a_window() -> None:
    window = RateWindow(window_s=5.0)
    assert window.per_second(0.0) == 0.0
    for second in range(10):
        window.add(float(second), 100 * second if second < 8 else 700)
    assert window.per_second(9.0) == pytest.approx(300 / 5)
    assert window.per_second(100.0) == 0.0


@pytest.mark.parametrize("first", ATTENTION)
def test_a_cell_that_may_grow_serves_with_the_fewest_it_was_told(first: WorkerId) -> None:
    """As an autoscaler leaves it: whichever attention worker came, and the others when they come."""
    state = Membership(TOPOLOGY, "c", min_attention=1)
    for worker_id in (*SHARDS, first):
        state, _ = state.join(_worker(worker_id))
    for worker_id in SHARDS:
        state, _ = _ready(state, worker_id)
    assert state.describe_missing() == "attention-0 is loading" if first.rank == 0 else "attention-0 has not joined"
    state, _ = _ready(state, first)
    assert state.is_ready
    assert state.describe_missing() == ""
    other = next(worker_id for worker_id in ATTENTION if worker_id != first)
    state, sent = state.join(_worker(other))
    assert _told(sent) == [(other, state.epoch, [0, 1, 2])]
    state, _ = _ready(state, other)
    assert state.kv_tokens == 2 * CREDITS.kv_capacity
    state, _ = state.lost(first)
    assert state.is_ready


def test_fewer_attention_workers_than_the_least_are_named() -> None:
    state = Membership(Topology(12, 3, 4), "c", min_attention=3)
    for worker_id in (*SHARDS, ATTENTION[1]):
        state, _ = state.join(_worker(worker_id))
        state, _ = _ready(state, worker_id)
    assert state.describe_missing() == "attention-0 has not joined, attention-2 has not joined"


def test_coverage_counts_redundant_copies_and_replicas() -> None:
    state = replace(_formed(replace(TOPOLOGY, num_replicas=2)), placement=Placement.blocks(12, 3, (1, 2)))
    assert (state.coverage.min_copies, state.coverage.max_copies) == (2, 2)
    assert state.placement is not None
    copied = state.placement.changed(1, {1: ((0, 1, 2, 3, 4), (4, 5, 6, 7), (8, 9, 10, 11))})
    state = replace(state, placement=copied)
    assert (state.coverage.min_copies, state.coverage.max_copies) == (2, 4)
    for rank in (1, 4):  # both copies of the second shard
        state, _ = state.lost(WorkerId(Role.EXPERT, rank))
    assert (state.coverage.num_covered, state.coverage.min_copies) == (8, 0)  # expert 4 is in one layer only
