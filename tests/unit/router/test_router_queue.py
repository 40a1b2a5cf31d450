"""The waiting line and the ledger by property: limits, order, and what tenants get of each other."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshard.errors import Overloaded
from moonshard.router.expectations import MIN_KNOWN, WINDOW_S, AdmissionRate, expected_wait_s, retry_after_s
from moonshard.router.fairness import MAX_TENANTS, Ledger
from moonshard.router.prefixes import CHUNK, PrefixIndex, chunk_hashes
from moonshard.router.queue import Entry, FairQueue


def make_queue(max_length: int = 1000, weights: dict[str, float] | None = None) -> tuple[FairQueue[None], Ledger]:
    ledger = Ledger(weights)
    return FairQueue(max_length, ledger), ledger


def push(queue: FairQueue[None], ledger: Ledger, entry_id: str, tenant: str = "", **values: int) -> Entry[None]:
    entry = Entry(entry_id, tenant, values.get("priority", 0), values.get("num_tokens", 10), None)
    ledger.opened(tenant)
    queue.push(entry)
    return entry


def serve(queue: FairQueue[None], ledger: Ledger) -> Entry[None]:
    """Admit the next and let it end."""
    (entry,) = queue.ahead(1)
    assert queue.take(entry.id) is entry
    ledger.charge(entry.tenant, entry.num_tokens)
    ledger.closed(entry.tenant)
    return entry


def test_the_queue_has_a_limit() -> None:
    queue, ledger = make_queue(3)
    for number in range(3):
        push(queue, ledger, str(number))
    with pytest.raises(Overloaded, match="3 of 3 requests; retry after 2 s"):
        queue.check_room(1, lambda: 2.0)
    assert queue.take("1") is not None
    assert queue.take("1") is None
    queue.check_room(1, lambda: 2.0)
    with pytest.raises(Overloaded):
        queue.check_room(2, lambda: 2.0)
    assert [entry.id for entry in queue.ahead(9)] == ["0", "2"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-2, 2), st.integers(1, 50)), max_size=40))
def test_within_a_tenant_priority_then_arrival(found: list[tuple[str, int, int]]) -> None:
    queue, ledger = make_queue()
    for number, (tenant, priority, num_tokens) in enumerate(found):
        push(queue, ledger, str(number), tenant, priority=priority, num_tokens=num_tokens)
    ahead = queue.ahead(len(found))
    assert sorted(int(entry.id) for entry in ahead) == list(range(len(found)))
    for tenant in "abc":
        line = [entry for entry in ahead if entry.tenant == tenant]
        assert line == sorted(line, key=lambda entry: (-entry.priority, int(entry.id)))


def test_what_came_back_stands_first_oldest_first() -> None:
    queue, ledger = make_queue()
    entries = [push(queue, ledger, str(number), priority=9 - number) for number in range(4)]
    for number in (2, 1):
        queue.take(str(number))
        queue.push_back_first(entries[number])
    assert [entry.id for entry in queue.ahead(9)] == ["1", "2", "0", "3"]
    queue.take("1")
    assert [entry.id for entry in queue.ahead(9)] == ["2", "0", "3"]


def test_what_came_back_does_not_count_against_the_limit() -> None:
    queue, ledger = make_queue(1)
    first = push(queue, ledger, "first")
    queue.take("first")
    push(queue, ledger, "second")
    queue.push_back_first(first)
    assert len(queue) == 2
    queue.take("second")
    queue.check_room(1, lambda: 1.0)


@given(st.lists(st.integers(1, 200), min_size=50, max_size=120), st.integers(1, 200))
def test_one_request_beside_many_is_next_but_one(sizes: list[int], size: int) -> None:
    queue, ledger = make_queue()
    for number, num_tokens in enumerate(sizes):
        push(queue, ledger, f"many-{number}", "many", num_tokens=num_tokens)
    for _ in range(20):
        serve(queue, ledger)
    push(queue, ledger, "one", "one", num_tokens=size)
    order = [serve(queue, ledger).tenant for _ in range(2)]
    assert "one" in order


@given(st.integers(1, 5), st.lists(st.integers(1, 100), min_size=1, max_size=20))
def test_busy_tenants_share_by_weight(weight: int, sizes: list[int]) -> None:
    queue, ledger = make_queue(5000, {"heavy": float(weight), "light": 1.0})
    for number in range(600):
        for tenant in ("heavy", "light"):
            push(queue, ledger, f"{tenant}-{number}", tenant, num_tokens=sizes[number % len(sizes)])
    tokens: Counter[str] = Counter()
    for _ in range(500):
        entry = serve(queue, ledger)
        tokens[entry.tenant] += entry.num_tokens
    assert abs(tokens["heavy"] - weight * tokens["light"]) <= (weight + 1) * max(sizes)


@given(st.data())
def test_idling_earns_nothing(data: st.DataObject) -> None:
    """However long a tenant was away, it does not go before another by more than one request's worth."""
    queue, ledger = make_queue()
    for number in range(data.draw(st.integers(0, 30))):
        push(queue, ledger, f"old-{number}", "sleeper")
        serve(queue, ledger)
    for number in range(100):
        push(queue, ledger, f"busy-{number}", "busy")
    for _ in range(50):
        serve(queue, ledger)
    for number in range(40):
        push(queue, ledger, f"late-{number}", "sleeper")
    order = [serve(queue, ledger).tenant for _ in range(20)]
    assert abs(order.count("busy") - order.count("sleeper")) <= 2


def test_names_that_callers_make_up_are_forgotten() -> None:
    ledger = Ledger({"named": 2.0})
    for number in range(2 * MAX_TENANTS):
        ledger.opened(str(number))
        ledger.closed(str(number))
    assert ledger.weight("named") == 2.0
    assert len(ledger._accounts) <= MAX_TENANTS


def test_a_newcomer_is_whoever_runs_nothing() -> None:
    ledger = Ledger()
    ledger.opened("a")
    assert ledger.is_newcomer("a")
    ledger.started("a")
    ledger.opened("b")
    assert (ledger.is_newcomer("a"), ledger.is_newcomer("b")) == (False, True)
    ledger.stopped("a")
    assert ledger.is_newcomer("a")


def test_others_are_expected_where_tenants_have_names() -> None:
    anonymous, named = Ledger(), Ledger()
    anonymous.opened("")
    named.opened("a")
    assert (anonymous.expects_others, named.expects_others) == (False, True)
    assert Ledger({"a": 1.0}).expects_others
    anonymous.opened("a")
    assert anonymous.expects_others


def test_the_rate_is_known_only_while_somebody_waits() -> None:
    rate = AdmissionRate()
    for number in range(2 * MIN_KNOWN):
        rate.add(number * 0.1, num_waiting=3)
    assert rate.per_second(1.6) == pytest.approx(10.0, rel=0.1)
    assert rate.per_second(1.6 + 2 * WINDOW_S) is None
    for number in range(2 * MIN_KNOWN):
        rate.add(100 + number * 0.1, num_waiting=3)
    rate.add(102.0, num_waiting=0)
    assert rate.per_second(102.0) is None


def test_a_tenant_expects_to_wait_for_its_own_share() -> None:
    assert expected_wait_s(1000, 0, 0.5, 10.0) == 0.0
    assert expected_wait_s(1000, 10, 0.5, 10.0) == 2.0
    assert expected_wait_s(1000, 900, 0.5, 10.0) == 100.0
    assert expected_wait_s(1000, 900, 0.5, None) is None
    assert (retry_after_s(1000, 10.0), retry_after_s(5, 10.0), retry_after_s(10**6, 1.0)) == (10.0, 1.0, 60.0)


@given(st.lists(st.integers(0, 9), max_size=300), st.lists(st.integers(0, 9), max_size=300))
def test_prompts_that_begin_alike_are_found(first: list[int], second: list[int]) -> None:
    index = PrefixIndex()
    index.note(chunk_hashes(first), 7)
    common = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    found = index.num_cached(chunk_hashes(second)).get(7, 0)
    limit = min(common, len(first) - 1, len(second) - 1)
    assert found == max(limit, 0) // CHUNK * CHUNK
    index.forget(7)
    assert index.num_cached(chunk_hashes(second)) == {}


def test_of_prefixes_the_latest_are_remembered() -> None:
    index = PrefixIndex(max_remembered=2)
    prompts = [chunk_hashes([number] * (CHUNK + 1)) for number in range(3)]
    for rank, hashes in enumerate(prompts):
        index.note(hashes, rank)
    assert [index.num_cached(hashes) for hashes in prompts] == [{}, {1: CHUNK}, {2: CHUNK}]
