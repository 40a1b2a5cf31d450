"""Sampled recomputation over direct links: two copies of a shard that agree, and two that do not."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moonshard.transport.contract import WireSpec
from moonshard.transport.links import Disagreement, LinkDispatcher
from moonshard.transport.links.recheck import agree
from moonshard.transport.routing_table import RoutingTable
from tests.contract.test_links_failover import Shards, idle_until, run_layer
from tests.contract.transport_cluster import TIMEOUT_S, expected, make_rows, make_spec, same_bits

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture
def spec() -> WireSpec:
    return make_spec(num_shards=2, num_experts=24)


@pytest.fixture
def pair(tmp_path: Path, spec: WireSpec) -> Iterator[Shards]:
    started = Shards(tmp_path, spec, 2)
    yield started
    for key in list(started.copies):
        started.kill(*key)


@pytest.fixture
def dispatcher(pair: Shards) -> Iterator[LinkDispatcher]:
    met = pair.meet()
    yield met
    met.close()


def _recheck(dispatcher: LinkDispatcher, spec: WireSpec, times: int) -> list[Disagreement]:
    """Each of so many layers has a row asked twice; sums keep their bits all the while."""
    found: list[Disagreement] = []
    dispatcher.recheck.every, dispatcher.recheck.alarm = 1, found.append
    for seed in range(times):
        rows, before = make_rows(spec, 1 + 7 * (seed % 3), seed), dispatcher.recheck.num_done
        assert same_bits(run_layer(dispatcher, 1 + seed % 3, rows), expected(spec, 1 + seed % 3, rows))
        idle_until(dispatcher, lambda before=before: dispatcher.recheck.num_done > before)  # type: ignore[misc]
    return found


def test_copies_that_agree_raise_no_alarm(spec: WireSpec, dispatcher: LinkDispatcher) -> None:
    assert _recheck(dispatcher, spec, 12) == []
    assert (dispatcher.recheck.num_done, dispatcher.recheck.num_disagreements) == (12, 0)


def test_a_copy_that_computes_something_else_is_found(spec: WireSpec, pair: Shards, dispatcher: LinkDispatcher) -> None:
    pair.copies[1, 1].answer = lambda _, y_RD: y_RD * 1.1
    found = _recheck(dispatcher, spec, 12)
    assert found
    assert {(it.shard, it.replicas) for it in found} == {(1, (0, 1))}
    assert all(set(it.experts) <= set(spec.experts_of(1)) for it in found)
    assert {it.layer for it in found} <= {1, 2, 3}
    assert dispatcher.recheck.num_disagreements == len(found)


def test_a_second_copy_that_dies_meanwhile_is_no_disagreement(
    spec: WireSpec, pair: Shards, dispatcher: LinkDispatcher
) -> None:
    for shard in (0, 1):
        pair.copies[shard, 1].answer = lambda *_: None
    found: list[Disagreement] = []
    dispatcher.recheck.every, dispatcher.recheck.alarm = 1, found.append
    rows = make_rows(spec, 5)
    assert same_bits(run_layer(dispatcher, 2, rows), expected(spec, 2, rows))
    assert not dispatcher.recheck.is_due(10, dispatcher._table), "one at a time"
    for shard in (0, 1):
        pair.kill(shard, 1)
        pair.start(shard, 1)
    pair.tell(dispatcher)
    idle_until(dispatcher, lambda: dispatcher.recheck.is_due(10, dispatcher._table))
    assert _recheck(dispatcher, spec, 3) == []


def test_a_copy_whose_experts_have_moved_meanwhile_is_not_suspected(
    spec: WireSpec, pair: Shards, dispatcher: LinkDispatcher
) -> None:
    """It answers NaN, which nobody waits for once another table is adopted."""
    adopted, answered = threading.Event(), threading.Semaphore(0)

    def late(_: object, y_RD: Tensor) -> Tensor:
        adopted.wait(TIMEOUT_S)
        answered.release()
        return torch.full_like(y_RD, torch.nan)

    for shard in (0, 1):
        pair.copies[shard, 1].answer = late
    found: list[Disagreement] = []
    suspected: list[object] = []
    dispatcher.recheck.every, dispatcher.recheck.alarm = 1, found.append
    dispatcher.recovery.tell = suspected.append
    run_layer(dispatcher, 2, make_rows(spec, 5))
    dispatcher.recheck.every = 0
    dispatcher.update_table(RoutingTable(spec), adopted.set)
    dispatcher.begin_step(1)
    assert answered.acquire(timeout=TIMEOUT_S)
    rows = make_rows(spec, 3)
    assert same_bits(run_layer(dispatcher, 3, rows), expected(spec, 3, rows))
    idle_until(dispatcher, lambda: not any(link.pending for link in dispatcher._table))
    assert (found, suspected, dispatcher.recheck.num_done) == ([], [], 0)


def test_without_copies_nothing_is_asked_twice(tmp_path: Path, spec: WireSpec) -> None:
    shards = Shards(tmp_path, spec, 1)
    dispatcher = shards.meet()
    dispatcher.recheck.every = 1
    run_layer(dispatcher, 1, make_rows(spec, 5))
    assert dispatcher.recheck.num_done == 0
    assert sum(shard.num_batches for shard in shards.copies.values()) == 2
    dispatcher.close()
    for key in list(shards.copies):
        shards.kill(*key)


def test_rounding_agrees_and_nan_does_not() -> None:
    row = torch.tensor([[1.0, -2.0, 0.001]])
    assert agree(row, row.bfloat16())
    assert agree(row * 0, row * 0)
    assert not agree(row, row * 1.05)
    assert not agree(row, torch.tensor([[1.0, float("nan"), 0.001]]))
    assert not agree(torch.full((1, 3), float("nan")), torch.full((1, 3), float("nan")))
