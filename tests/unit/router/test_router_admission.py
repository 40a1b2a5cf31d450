"""The waiting line and admission, by property."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshard.errors import Overloaded
from moonshard.router.admission import Assignment, Demand, FreeCredits, admit
from moonshard.router.queue import WaitingQueue

lengths = st.lists(st.integers(1, 200), max_size=30)
workers = st.lists(
    st.tuples(st.integers(1, 32), st.integers(0, 20), st.integers(0, 5)), max_size=4
).map(lambda found: [FreeCredits(rank, *values) for rank, values in enumerate(found)])  # fmt: skip


def _demands(lengths: list[int]) -> list[Demand]:
    return [Demand(str(number), length) for number, length in enumerate(lengths)]


@given(lengths, workers)
def test_never_more_than_the_credits(lengths: list[int], workers: list[FreeCredits]) -> None:
    assignments = list(admit(_demands(lengths), workers))
    for worker in workers:
        own = [assignment for assignment in assignments if assignment.rank == worker.rank]
        assert len(own) <= worker.num_free_seqs
        assert sum(assignment.num_blocks for assignment in own) <= worker.num_free_blocks
        for assignment in own:
            assert assignment.num_blocks * worker.block_size >= lengths[int(assignment.id)]


@given(lengths, workers)
def test_order_is_kept_and_the_first_left_behind_fits_nowhere(lengths: list[int], workers: list[FreeCredits]) -> None:
    demands = _demands(lengths)
    assignments = list(admit(demands, workers))
    assert [assignment.id for assignment in assignments] == [demand.id for demand in demands[: len(assignments)]]
    left = {worker.rank: worker for worker in workers}
    for assignment in assignments:
        left[assignment.rank] = left[assignment.rank].reserve(lengths[int(assignment.id)])
    if len(assignments) < len(demands):
        assert not any(worker.fits(demands[len(assignments)].max_len) for worker in left.values())


@given(lengths, st.integers(1, 5), st.integers(4, 20), st.data())
def test_everybody_is_served_once_in_the_end(lengths: list[int], seqs: int, blocks: int, data: st.DataObject) -> None:
    """Requests that fit an empty worker all get through, in order, whatever order they finish in."""
    free = FreeCredits(0, 50, blocks, seqs)
    waiting, running, served = _demands(lengths), list[Demand](), list[str]()
    while waiting or running:
        for assignment in list(admit(waiting, [free])):
            demand = waiting.pop(0)
            assert demand.id == assignment.id
            free = free.reserve(demand.max_len)
            running.append(demand)
            served.append(demand.id)
        free = free.release(running.pop(data.draw(st.integers(0, len(running) - 1))).max_len)
    assert served == [demand.id for demand in _demands(lengths)]
    assert free == FreeCredits(0, 50, blocks, seqs)


def test_the_worker_with_most_free_blocks_is_taken() -> None:
    workers = [FreeCredits(0, 16, 4, 8), FreeCredits(1, 16, 6, 8), FreeCredits(2, 16, 9, 0)]
    assert list(admit([Demand("a", 40), Demand("b", 16), Demand("c", 100)], workers)) == [
        Assignment("a", 1, 3),
        Assignment("b", 0, 1),
    ]


def test_the_queue_has_a_limit_and_keeps_order() -> None:
    queue: WaitingQueue[int] = WaitingQueue(3)
    for number in range(3):
        queue.push(str(number), number)
    with pytest.raises(Overloaded, match="3 of 3 requests"):
        queue.push("3", 3)
    assert queue.pop("1") == 1
    assert queue.pop("1") is None
    queue.push("3", 3)
    assert list(queue) == [0, 2, 3]
