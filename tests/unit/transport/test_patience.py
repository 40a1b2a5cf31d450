"""When a shard counts as slow."""

from hypothesis import given
from hypothesis import strategies as st

from moonshard.transport.links.patience import HedgeBudget, Patience, WaitWindow, hedge_after

PATIENCE = Patience(reply_s=10.0, failover_s=60.0, hedge_s=0.25)


def test_short_waits_do_not_make_a_dispatcher_nervous() -> None:
    assert hedge_after([0.001] * 256, PATIENCE) == 0.25


def test_long_waits_that_are_usual_are_not_slow() -> None:
    assert hedge_after(sorted([0.01] * 240 + [0.5] * 16), PATIENCE) == 2.0


def test_one_outlier_of_many_does_not_count() -> None:
    assert hedge_after(sorted([0.01] * 255 + [9.0]), PATIENCE) == 0.25


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=600))
def test_it_stays_within_the_limits(waits_s: list[float]) -> None:
    window = WaitWindow(PATIENCE)
    for wait_s in waits_s:
        window.add(wait_s)
        assert PATIENCE.hedge_s <= window.hedge_s <= PATIENCE.reply_s


def test_hedges_are_a_share_of_the_calls() -> None:
    budget = HedgeBudget()
    assert sum(budget.take(0, 100.0) for _ in range(100)) == 16
    assert budget.num_refused == 1, "one wait, however often it looked"
    assert sum(budget.take(200, 100.0) for _ in range(100)) == 10
    assert budget.num_refused == 2
    assert sum(budget.take(10**6, 100.0) for _ in range(100)) == 16, "what was not used is not saved for ever"


def test_a_wait_is_hedged_though_the_share_is_spent() -> None:
    budget = HedgeBudget()
    while budget.take(0, 100.0):
        pass
    assert budget.again_s() == 100.5
    assert not budget.take(0, 100.4)
    assert budget.take(0, 100.5)
    assert not budget.take(0, 100.6)
