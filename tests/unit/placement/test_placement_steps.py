"""Every way from one placement to another keeps every expert served and every shard within its slots."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshard.errors import ConfigError
from moonshard.placement import Layer, Rules, contiguous, moves, plan_layer
from moonshard.placement_steps import steps


def follow(current: Layer, wanted: Layer, num_slots: int) -> int:
    """Steps taken, each checked."""
    everyone = {expert for held in current for expert in held}
    now, found = current, steps(current, wanted, num_slots)
    for step in found:
        for layer in (step.before, step.after):
            assert {expert for held in layer for expert in held} == everyone
            assert max(map(len, layer)) <= num_slots
        for old, new in zip(now, step.before, strict=True):
            assert set(new) <= set(old)  # nothing is served before it is loaded
        loaded = [set(b) - set(a) for a, b in zip(step.before, step.after, strict=True)]
        assert [(shard, *it) for shard, it in enumerate(loaded) if it] == (
            [] if step.expert is None else [(step.shard, step.expert)]
        )
        now = step.after
    assert now == wanted
    return len(found)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), num_shards=st.integers(2, 5), each=st.integers(1, 5), spare=st.integers(1, 2))
def test_any_two_placements(data: st.DataObject, num_shards: int, each: int, spare: int) -> None:
    num_experts, num_slots = num_shards * each, each + spare
    rules = Rules(num_shards, num_slots)
    loads = st.lists(st.integers(0, 1000), min_size=num_experts, max_size=num_experts)
    current, wanted = plan_layer(data.draw(loads), rules), plan_layer(data.draw(loads), rules)
    follow(contiguous(num_experts, num_shards), current, num_slots)
    follow(current, wanted, num_slots)
    follow(wanted, contiguous(num_experts, num_shards), num_slots)


def test_nearly_no_step_is_a_detour_at_k25s_size() -> None:
    blocks = contiguous(384, 8)
    wanted = plan_layer([(expert * 7919) % 1000 for expert in range(384)], Rules(8, 52))
    assert follow(blocks, wanted, 52) <= 1.05 * len(moves(blocks, wanted)) + 1


def test_a_swap_between_full_shards_goes_over_a_third() -> None:
    assert follow(((0, 1), (2, 3), (0, 4, 5)), ((0, 2), (1, 3), (0, 4, 5)), 3) >= 2
    assert follow(((0, 1), (2, 3), (0, 4)), ((0, 2), (1, 3), (0, 4)), 2) >= 3


def test_what_cannot_be_done() -> None:
    with pytest.raises(ConfigError, match="placement: the wanted placement needs 3 slots of a shard, there are 2"):
        steps(((0, 1), (2, 3)), ((0, 1, 2), (2, 3)), 2)
    with pytest.raises(ConfigError, match="placement: expert 3 would have no copy"):
        steps(((0, 1), (2, 3)), ((0, 1), (2, 0)), 2)
    with pytest.raises(ConfigError, match="placement: 2 slots a shard leave no room to move in"):
        steps(((0, 1), (2, 3)), ((0, 2), (1, 3)), 2)
