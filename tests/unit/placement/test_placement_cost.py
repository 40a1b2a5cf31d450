import pytest

from moonshard.placement import Rules, contiguous
from moonshard.placement_cost import Costs, busiest_s, propose

RULES = Rules(num_shards=2, slots_per_shard=3, batch_rows=10, top_k=1)
COSTS = Costs(row_s=1e-3, expert_s=0.0, move_s=2.0, horizon_s=100.0)
SKEWED, EVEN = [300, 100, 50, 50], [100, 101, 100, 99]


def test_the_busiest_shard_sets_the_pace() -> None:
    current = contiguous(4, 2)
    assert busiest_s(current, SKEWED, 1.0, RULES, COSTS) == pytest.approx(0.4)
    assert busiest_s(current, SKEWED, 2.0, RULES, COSTS) == pytest.approx(0.2)


def test_reading_active_experts_is_paid_by_the_batch() -> None:
    costs = Costs(row_s=0.0, expert_s=1e-3, move_s=1.0)
    # Both experts of the first shard are in every batch of ten, those of the second in few.
    seconds = busiest_s(contiguous(4, 2), [500, 500, 1, 0], 1.0, RULES, costs)
    assert seconds == pytest.approx(2 * 100.1e-3, rel=0.01)


def test_a_change_that_gains_more_than_it_costs_pays() -> None:
    change = propose(contiguous(4, 2), SKEWED, 1.0, RULES, COSTS)
    assert (change.balance_before, change.balance_after) == (pytest.approx(0.625), pytest.approx(1.0))
    assert (change.before_s, change.after_s) == (pytest.approx(0.4), pytest.approx(0.25))
    assert change.gain_s == pytest.approx(15.0)
    assert (change.num_moves, change.cost_s, change.pays) == (1, 2.0, True)


def test_a_balanced_layer_is_left_alone() -> None:
    change = propose(contiguous(4, 2), EVEN, 1.0, RULES, COSTS)
    assert not change.pays


def test_a_short_horizon_pays_for_nothing() -> None:
    costs = Costs(row_s=1e-3, expert_s=0.0, move_s=2.0, horizon_s=1.0)
    assert not propose(contiguous(4, 2), SKEWED, 1.0, RULES, costs).pays
