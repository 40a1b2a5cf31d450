import itertools
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshard.errors import ConfigError
from moonshard.placement import (
    Layer,
    Move,
    Rules,
    balancedness,
    contiguous,
    copies_of,
    count_copies,
    improve_layer,
    moves,
    plan_layer,
    relabelled,
    shard_weights,
    weigher,
)
from tests.unit.placement.eplb import eplb_balancedness
from tests.unit.placement.skew import skewed_load

NUM_SHARDS, NUM_EXPERTS, REDUNDANT = 8, 384, 32
K25 = Rules(NUM_SHARDS, (NUM_EXPERTS + REDUNDANT) // NUM_SHARDS)


def balance(layer: Layer, load: Sequence[int], rules: Rules) -> float:
    return balancedness(shard_weights(layer, weigher(load, rules)))


def test_the_hottest_get_the_copies() -> None:
    rules = Rules(num_shards=4, slots_per_shard=2)
    assert count_copies([100, 10, 10, 10], rules) == [4, 2, 1, 1]
    layer = plan_layer([100, 10, 10, 10], rules)
    assert copies_of(layer, 4) == [4, 2, 1, 1]
    assert shard_weights(layer, weigher([100, 10, 10, 10], rules)) == pytest.approx([30, 30, 35, 35], abs=6)


def test_without_spare_slots_a_hot_expert_gets_cold_company() -> None:
    assert plan_layer([9, 8, 1, 2], Rules(2, 2)) in (((0, 2), (1, 3)), ((1, 3), (0, 2)))


def test_every_expert_has_its_copies_even_without_load() -> None:
    layer = plan_layer([0] * 6, Rules(3, 4, min_copies=2))
    assert copies_of(layer, 6) == [2] * 6


def test_decoding_copies_nothing_and_evens_out_what_is_read() -> None:
    load = [1000] * 4 + [1] * 12
    rules = Rules(4, 8, mode="decode", batch_rows=64, top_k=2)
    layer = plan_layer(load, rules)
    assert copies_of(layer, 16) == [1] * 16
    hot = [sum(expert < 4 for expert in held) for held in layer]
    assert hot == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (Rules(2, 1), "slots_per_shard: 4 copies need more than 2 slots"),
        (Rules(2, 9, min_copies=3), r"min_copies: must be in 1\.\.2 shards, got 3"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rules: Rules, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_layer([1] * 4, rules)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], Rules]:
    load = draw(st.lists(st.integers(0, 1000), min_size=1, max_size=40))
    num_shards = draw(st.integers(1, 6))
    min_copies = draw(st.integers(1, num_shards))
    fewest = -(-len(load) * min_copies // num_shards)
    # A shard with fewer slots than experts could not hold all copies apart when slots are nearly full.
    slots = draw(st.integers(fewest, fewest + 6))
    mode = draw(st.sampled_from(("rows", "decode")))
    return load, Rules(num_shards, slots, min_copies, mode)


@given(cases())
@settings(deadline=None, max_examples=300)
def test_a_plan_keeps_the_rules(case: tuple[list[int], Rules]) -> None:
    load, rules = case
    layer = plan_layer(load, rules)
    assert all(len(held) <= rules.slots_per_shard and len(set(held)) == len(held) for held in layer)
    assert min(copies_of(layer, len(load))) >= rules.min_copies
    assert plan_layer(load, rules) == layer, "the same load gives the same plan"


@given(st.lists(st.integers(0, 50), min_size=6, max_size=6), st.integers(2, 3))
@settings(deadline=None, max_examples=60)
def test_small_plans_are_close_to_the_best_there_is(load: list[int], num_shards: int) -> None:
    rules = Rules(num_shards, 6 // num_shards)
    weight = weigher(load, rules)
    found = max(shard_weights(plan_layer(load, rules), weight))
    best = min(max(shard_weights(layer, weight)) for layer in all_layers(6, num_shards))
    assert found <= best * 7 / 6 + 1e-9


def all_layers(num_experts: int, num_shards: int) -> list[Layer]:
    """Every way to deal experts without copies into shards of equal size."""
    each = num_experts // num_shards
    dealt = {
        tuple(sorted(tuple(sorted(order[at : at + each])) for at in range(0, num_experts, each)))
        for order in itertools.permutations(range(num_experts))
    }
    return list(dealt)


@given(cases(), st.integers(0, 8))
@settings(deadline=None, max_examples=200)
def test_improving_costs_no_more_moves_than_allowed_and_never_harms(
    case: tuple[list[int], Rules], moves_max: int
) -> None:
    load, rules = case
    current = plan_layer(load[::-1], rules)
    better = improve_layer(current, load, rules, moves_max)
    weight = weigher(load, rules)
    assert len(moves(current, better)) <= moves_max
    assert max(shard_weights(better, weight)) <= max(shard_weights(current, weight)) * (1 + 1e-9) + 1e-9
    assert min(copies_of(better, len(load))) >= rules.min_copies
    assert all(len(held) <= rules.slots_per_shard for held in better)


def test_renumbering_keeps_experts_where_they_are() -> None:
    current = ((0, 1), (2, 3), (4, 5))
    assert relabelled(((4, 5), (0, 2), (1, 3)), current) == ((0, 2), (1, 3), (4, 5))
    assert moves(current, ((0, 2), (1, 3), (4, 5))) == [Move(0, 2), Move(1, 1)]


def test_the_skew_is_like_a_routers() -> None:
    load_LE = skewed_load(12, NUM_EXPERTS, 4096, 8, seed=1)
    heat_LE = load_LE / load_LE.mean(axis=1, keepdims=True)
    assert np.all(load_LE.sum(axis=1) > 0.98 * 4096 * 8)
    assert load_LE.max() <= 4096
    assert 3 < heat_LE.max() < 16
    balances = [balance(contiguous(NUM_EXPERTS, NUM_SHARDS), load, K25) for load in load_LE.tolist()]
    assert 0.6 < np.mean(balances) < 0.95
    assert len({int(layer.argmax()) for layer in load_LE}) > 6, "hot experts differ by layer"


@pytest.mark.parametrize("concentration", [0.2, 0.6, 1.5])
def test_a_whole_model_is_planned_in_a_second_as_evenly_as_eplb(concentration: float) -> None:
    load_LE = skewed_load(60, NUM_EXPERTS, 4096, 8, seed=2, concentration=concentration).tolist()
    started = time.process_time()
    plans = [plan_layer(load, K25) for load in load_LE]
    took_s = time.process_time() - started
    ours = [balance(plan, load, K25) for plan, load in zip(plans, load_LE, strict=True)]
    theirs = [eplb_balancedness(load, NUM_SHARDS, K25.slots_per_shard) for load in load_LE]
    assert min(ours) >= 0.95
    assert all(a >= b - 1e-9 for a, b in zip(ours, theirs, strict=True))
    assert took_s < 1.0
