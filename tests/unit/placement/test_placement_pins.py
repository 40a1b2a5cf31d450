"""Pinned copies are where they must be, and nobody else is lost for it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshard.errors import ConfigError
from moonshard.placement import Rules, contiguous, moves, plan_layer
from moonshard.placement_pins import pinned


@settings(deadline=None, max_examples=200)
@given(data=st.data(), num_shards=st.integers(2, 4), each=st.integers(2, 5))
def test_any_pins(data: st.DataObject, num_shards: int, each: int) -> None:
    num_experts, num_slots = num_shards * each, each + 1
    load = data.draw(st.lists(st.integers(0, 100), min_size=num_experts, max_size=num_experts))
    shards = st.sets(st.integers(0, num_shards - 1), min_size=1, max_size=2).map(tuple)
    pins = data.draw(st.dictionaries(st.integers(0, num_experts - 1), shards, max_size=2))
    layer = pinned(plan_layer(load, Rules(num_shards, num_slots)), pins, num_slots)
    assert all(expert in layer[shard] for expert, shards in pins.items() for shard in shards)
    assert {expert for held in layer for expert in held} == set(range(num_experts))
    assert max(map(len, layer)) <= num_slots


def test_one_pin_is_one_move() -> None:
    blocks = contiguous(8, 2)
    assert pinned(blocks, {1: (0,)}, 4) == blocks
    assert len(moves(blocks, pinned(blocks, {1: (0, 1)}, 5))) == 1
    assert pinned(blocks, {1: (1,)}, 4) == ((0, 2, 3, 4), (1, 5, 6, 7))  # full shards swap


def test_too_many_pins() -> None:
    with pytest.raises(ConfigError, match=r"pin.shards: shard 0 has 2 slots, 3 experts are pinned to it"):
        pinned(contiguous(4, 2), {0: (0,), 1: (0,), 2: (0,)}, 2)
