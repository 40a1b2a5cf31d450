"""When the launcher starts a dead worker again, and when it gives up."""

from hypothesis import given
from hypothesis import strategies as st

from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.local.restarts import RestartBook, RestartRule
from moonshard_cluster.local.rolling import missing, order

RULE = RestartRule(max_deaths=4, window_s=60.0, pause_s=0.25, pause_max_s=0.6)


def test_the_first_death_is_answered_at_once_and_later_ones_after_longer_pauses() -> None:
    book = RestartBook(RULE)
    assert [book.died("expert-0", at_s) for at_s in (0.0, 1.0, 2.0, 3.0, 4.0)] == [0.0, 0.25, 0.5, 0.6, None]
    assert book.died("expert-1", 4.0) == 0.0, "each process has a history of its own"
    assert book.died("expert-0", 100.0) == 0.0, "what is long ago is forgotten"


@given(st.lists(st.floats(0.0, 100.0), max_size=30))
def test_no_window_holds_more_restarts_than_the_rule_allows(gaps_s: list[float]) -> None:
    book, now_s, restarts = RestartBook(RULE), 0.0, list[float]()
    for gap_s in gaps_s:
        now_s += gap_s
        pause_s = book.died("x", now_s)
        if pause_s is not None:
            restarts.append(now_s)
            assert 0.0 <= pause_s <= RULE.pause_max_s
        assert sum(at_s > now_s - RULE.window_s for at_s in restarts) <= RULE.max_deaths


def test_a_rolling_restart_takes_shards_first_and_counts_who_is_missing() -> None:
    ready = pb.WORKER_STATE_READY
    workers = [
        pb.WorkerStatus(role=pb.ROLE_ROUTER, state=ready),
        pb.WorkerStatus(role=pb.ROLE_ATTENTION, rank=0, state=ready),
        pb.WorkerStatus(role=pb.ROLE_EXPERT, rank=1, state=ready),
        pb.WorkerStatus(role=pb.ROLE_EXPERT, rank=0, state=pb.WORKER_STATE_LOADING),
    ]
    status = pb.GetStatusResponse(workers=workers, num_attention=1, num_shards=2, num_replicas=1)
    assert order(status) == [(pb.ROLE_EXPERT, 0), (pb.ROLE_EXPERT, 1), (pb.ROLE_ATTENTION, 0)]
    assert missing(status) == 1
