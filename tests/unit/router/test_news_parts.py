"""In which order, and in how many turns of the loop, the news of an iteration are taken."""

from hypothesis import given
from hypothesis import strategies as st

from moonshard.router.flight import SequenceUpdate
from moonshard.router.news_parts import PART, in_parts


def test_first_tokens_come_first_and_alone() -> None:
    updates = [SequenceUpdate(name, (1,)) for name in ("a", "new", "b", "fresh")]
    before, last = in_parts(updates, lambda name: name in "ab")
    assert [[update.sequence_id for update in part] for part in (*before, last)] == [["new", "fresh"], ["a", "b"]]


def test_no_news_are_one_empty_part() -> None:
    assert in_parts([], lambda _: True) == ([], [])


@given(st.lists(st.booleans(), max_size=100))
def test_all_news_are_taken_once_in_small_parts(begun: list[bool]) -> None:
    updates = [SequenceUpdate(str(number), (1,)) for number in range(len(begun))]
    before, last = in_parts(updates, lambda name: begun[int(name)])
    parts = [*before, last]
    taken = [int(update.sequence_id) for part in parts for update in part]
    assert taken == sorted(taken, key=lambda number: (begun[number], number))
    assert len(taken) == len(begun)
    assert all(part for part in before)
    assert all(len(part) <= PART for part in parts if part and begun[int(part[0].sequence_id)])
