"""Admission by property: within the credits, in order, nobody forgotten; and which worker is taken."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from moonshard.router.admission import MAX_PASSED, Assignment, Demand, Room, admit

demands = st.lists(
    st.builds(
        lambda num_tokens, more, num_passed, is_newcomer: (num_tokens, num_tokens + more, num_passed, is_newcomer),
        st.integers(1, 100), st.integers(1, 60), st.sampled_from([0, MAX_PASSED - 1, MAX_PASSED]), st.booleans(),
    ),
    max_size=24,
).map(lambda found: [Demand(str(number), *values) for number, values in enumerate(found)])  # fmt: skip


@st.composite
def rooms(draw: st.DrawFn) -> list[Room]:
    found = []
    for rank in range(draw(st.integers(0, 3))):
        num_blocks, num_running = draw(st.integers(1, 24)), draw(st.integers(0, 5))
        idle = num_running == 0
        found.append(
            Room(
                rank=rank,
                block_size=draw(st.integers(1, 16)),
                num_blocks=num_blocks,
                num_free_blocks=num_blocks if idle else draw(st.integers(-3, num_blocks)),
                num_free_seqs=draw(st.integers(1 if idle else 0, 6)),
                max_step_tokens=16,
                prefill_budget=64,
                num_prefill_tokens=0 if idle else draw(st.integers(0, 80)),
                num_running=num_running,
                reserved_seqs=draw(st.integers(0, 2)),
                reserved_blocks=draw(st.integers(0, 3)),
            )
        )
    return found


def small(rank: int = 0, **values: int) -> Room:
    defaults = {"block_size": 16, "num_blocks": 64, "num_free_blocks": 64, "num_free_seqs": 8}
    limits = {"max_step_tokens": 512, "prefill_budget": 4096}
    return Room(rank=rank, **(defaults | limits | values))


def names(assignments: Sequence[Assignment]) -> list[tuple[str, int]]:
    return [(assignment.id, assignment.rank) for assignment in assignments]


@given(demands, rooms())
def test_never_more_than_the_credits(waiting: list[Demand], workers: list[Room]) -> None:
    by_id = {demand.id: demand for demand in waiting}
    left = {room.rank: room for room in workers}
    for assignment in admit(waiting, workers).assignments:
        room, demand = left[assignment.rank], by_id[assignment.id]
        assert room.fits(demand)
        left[assignment.rank] = room = room.with_(demand)
        assert room.num_free_seqs >= 0
        assert room.num_free_blocks >= 0
        assert room.num_free_blocks + room.blocks_to_start(demand) >= room.blocks_for(demand.num_tokens)


@given(demands, rooms())
def test_who_is_left_fits_nowhere_or_keeps_behind_a_claim(waiting: list[Demand], workers: list[Room]) -> None:
    found = admit(waiting, workers)
    taken = {assignment.id for assignment in found.assignments}
    left = {room.rank: room for room in workers}
    for assignment in found.assignments:
        left[assignment.rank] = left[assignment.rank].with_(waiting[int(assignment.id)])
    claims = False
    for demand in waiting:
        if demand.id in taken:
            continue
        claims = claims or demand.num_passed + found.passed.get(demand.id, 0) >= MAX_PASSED
        assert claims or not any(room.fits(demand) for room in left.values())


@given(demands, rooms())
def test_passing_is_counted_and_nobody_is_passed_more_often_than_agreed(
    waiting: list[Demand], workers: list[Room]
) -> None:
    single = workers[:1]
    found = admit(waiting, single)
    order = [assignment.id for assignment in found.assignments]
    for demand in waiting:
        if demand.id in order or not any(room.can_ever_hold(demand) for room in single):
            continue
        num_later = sum(int(other) > int(demand.id) for other in order)
        assert num_later == found.passed.get(demand.id, 0)
        assert demand.num_passed + num_later <= max(MAX_PASSED, demand.num_passed)


@given(demands, rooms())
def test_an_idle_worker_takes_whoever_it_can_ever_hold(waiting: list[Demand], workers: list[Room]) -> None:
    idle = [room for room in workers if not room.num_running]
    taken = {assignment.id for assignment in admit(waiting, idle).assignments}
    first = next((demand for demand in waiting if any(room.can_ever_hold(demand) for room in idle)), None)
    assert first is None or first.id in taken


def test_a_long_prompt_is_passed_so_often_and_then_claims_the_worker() -> None:
    room = small(num_free_blocks=10, num_running=3, num_free_seqs=80)
    long = Demand("long", 500, 600)
    shorts = [Demand(f"s{number}", 1, 2) for number in range(4)]
    found = admit([long, *shorts], [room])
    assert [assignment.id for assignment in found.assignments] == ["s0", "s1", "s2", "s3"]
    assert found.passed == {"long": 4}
    almost = replace(long, num_passed=MAX_PASSED - 2)
    assert names(admit([almost, *shorts], [room]).assignments) == [("s0", 0), ("s1", 0)]
    assert not admit([replace(long, num_passed=MAX_PASSED), *shorts], [room]).assignments


def test_a_claim_closes_one_worker_and_leaves_the_others_open() -> None:
    rooms = [small(0, num_free_blocks=10, num_running=1), small(1, num_free_blocks=20, num_running=1)]
    long = Demand("long", 500, 600, num_passed=MAX_PASSED)
    assert names(admit([long, Demand("s", 1, 2)], rooms).assignments) == [("s", 0)]


def test_what_no_worker_can_ever_hold_claims_nothing() -> None:
    huge = Demand("huge", 2000, 2001, num_passed=MAX_PASSED)
    assert names(admit([huge, Demand("s", 1, 2)], [small()]).assignments) == [("s", 0)]


def test_the_last_slots_are_for_tenants_with_nothing_running() -> None:
    room = small(num_free_seqs=1, reserved_seqs=1, num_running=7)
    waiting = [Demand("greedy", 1, 2, is_newcomer=False), Demand("newcomer", 1, 2)]
    assert names(admit(waiting, [room]).assignments) == [("newcomer", 0)]


def test_prompts_wait_for_the_prefill_budget_but_short_ones_pass() -> None:
    room = small(num_running=2, num_prefill_tokens=3700)
    waiting = [Demand("long", 600, 601), Demand("short", 20, 21)]
    assert names(admit(waiting, [room]).assignments) == [("short", 0)]
    assert names(admit(waiting, [small(num_running=2, num_prefill_tokens=3500)]).assignments)[0] == ("long", 0)


def test_the_least_busy_worker_is_taken() -> None:
    rooms = [small(0, num_running=5), small(1, num_running=2), small(2, num_running=2, num_free_blocks=60)]
    assert names(admit([Demand("a", 4, 5), Demand("b", 4, 5)], rooms).assignments) == [("a", 1), ("b", 2)]


def test_a_prompt_goes_where_its_beginning_is_cached_unless_that_worker_is_much_busier() -> None:
    known = Demand("a", 700, 800, num_cached={0: 640})
    busy, idle = small(0, num_running=20), small(1)
    assert names(admit([known], [busy, idle]).assignments) == [("a", 0)]
    assert names(admit([known], [replace(busy, num_running=60), idle]).assignments) == [("a", 1)]
