"""Several caches told as one: whoever follows the stream knows what the cell holds."""

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshard.errors import Overloaded
from moonshard.router.gateway import kv_events
from moonshard.router.gateway.kv_events import KvEvents
from moonshard.v1 import control_pb2 as pb


def stored(block_hash: int, parent: int | None = None) -> pb.KvEvent:
    return pb.KvEvent(stored=pb.KvBlock(hash=block_hash, parent=parent, token_ids=[block_hash % 7] * 4))


def removed(block_hash: int) -> pb.KvEvent:
    return pb.KvEvent(removed=block_hash)


CLEARED = pb.KvEvent(cleared=True)


class Mirror:
    """What a subscriber believes."""

    def __init__(self) -> None:
        self.blocks: set[int] = set()
        self.number = 0

    def apply(self, batches: Iterable[kv_events.pb.KvEventBatch]) -> None:
        for batch in batches:
            assert self.number in (0, batch.sequence_number - 1)
            self.number = batch.sequence_number
            for event in batch.events:
                kind = event.WhichOneof("data")
                if kind == "stored":
                    self.blocks |= {block.block_hash for block in event.stored.blocks}
                elif kind == "removed":
                    self.blocks -= set(event.removed.block_hashes)
                else:
                    self.blocks = set()


async def _follow(events: KvEvents, after: int, num_batches: int) -> list[kv_events.pb.KvEventBatch]:
    stream = events.subscribe(after)
    found = [await anext(stream) for _ in range(num_batches)]
    await stream.aclose()
    return found


changes = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.one_of(
            st.builds(stored, st.integers(1, 6)), st.builds(removed, st.integers(1, 6)), st.just(CLEARED), st.none()
        ),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(before=changes, after=changes)
def test_a_subscriber_knows_the_cells_blocks(
    before: list[tuple[int, pb.KvEvent]], after: list[tuple[int, pb.KvEvent]]
) -> None:
    events, held = KvEvents(block_size=4), [dict[int, int]() for _ in range(3)]

    def apply(made: list[tuple[int, pb.KvEvent]]) -> None:
        for rank, event in made:
            _keep_books(held, rank, event)
            events.forget(rank) if event is None else events.receive(rank, [event])

    async def follow() -> set[int]:
        apply(before)
        mirror = Mirror()
        stream = events.subscribe(0)
        mirror.apply([await anext(stream)])
        first = mirror.number
        apply(after)
        mirror.apply([await anext(stream) for _ in range(events.sequence - first)])
        await stream.aclose()
        return mirror.blocks

    assert asyncio.run(follow()) == {number for rank in held for number, copies in rank.items() if copies}


def _keep_books(held: list[dict[int, int]], rank: int, event: pb.KvEvent | None) -> None:
    if event is None or event.WhichOneof("body") == "cleared":
        held[rank].clear()
    elif event.WhichOneof("body") == "stored":
        held[rank][event.stored.hash] = held[rank].get(event.stored.hash, 0) + 1
    elif held[rank].get(event.removed):
        held[rank][event.removed] -= 1


def test_a_returning_subscriber_gets_what_it_missed() -> None:
    events = KvEvents(block_size=4)
    for number in range(1, 4):
        events.receive(0, [stored(number, number - 1 or None)])
    first = events.sequence - 2
    (second, third) = asyncio.run(_follow(events, first, 2))
    assert not second.HasField("snapshot")
    assert [second.sequence_number, third.sequence_number] == [first + 1, first + 2]
    assert third.events[0].stored.parent_block_hash == 2


def test_large_hashes_keep_their_bits_and_snapshots_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_events, "SNAPSHOT_BLOCKS", 2)
    events = KvEvents(block_size=4)
    events.receive(0, [stored(2**64 - 1), stored(5, 2**64 - 1), stored(6, 5)])
    chunks = asyncio.run(_follow(events, 0, 2))
    assert [(chunk.snapshot.index, chunk.snapshot.count, chunk.snapshot.blocks) for chunk in chunks] == [
        (0, 2, 3),
        (1, 2, 3),
    ]
    assert chunks[0].events[0].WhichOneof("data") == "cleared"
    assert chunks[0].events[1].stored.blocks[0].block_hash == -1
    assert chunks[-1].sequence_number == events.sequence


def test_a_subscriber_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_events, "MAX_PENDING", 3)

    async def lag() -> None:
        events = KvEvents(block_size=4)
        stream = events.subscribe(0)
        await anext(stream)
        for number in range(1, 9):
            events.receive(0, [stored(number)])
        with pytest.raises(Overloaded, match="lags more than 3"):
            async for _ in stream:
                pass

    asyncio.run(lag())
