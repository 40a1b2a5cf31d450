"""What the prefix caches of a cell hold, told to gateways as one cache. Runs in the event loop's thread.

Attention workers report blocks; a block that several of them hold is told of once, with the first copy, and taken back
with the last one.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field

from smg_grpc_proto.generated import common_pb2 as pb

from moonshard.errors import Overloaded
from moonshard.v1 import control_pb2

# Batches that a subscriber may lag behind, and those it may ask for again.
MAX_PENDING = 4096
HISTORY = 1024
SNAPSHOT_BLOCKS = 512
# The chunks of a snapshot are numbered up to the state's own number: there must be room in front of the first.
FIRST_NUMBER = 2**24
MAX_SUBSCRIBERS = 64


@dataclass(slots=True)
class _Subscriber:
    pending: deque[pb.KvEventBatch] = field(default_factory=deque)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    lags: bool = False


class KvEvents:
    """Numbers every batch of changes; a subscriber gets the cache as it is and then every change.

    sequence: the last number given.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._blocks: dict[int, control_pb2.KvBlock] = {}  # live, in the order of their becoming so
        self._holders: dict[int, Counter[int]] = {}  # rank -> hash -> copies
        self._copies: Counter[int] = Counter()
        self.sequence = FIRST_NUMBER
        self._event_id = 0
        self._history: deque[pb.KvEventBatch] = deque(maxlen=HISTORY)
        self._subscribers: list[_Subscriber] = []

    def receive(self, rank: int, events: Iterable[control_pb2.KvEvent]) -> None:
        """News of one attention worker's cache, in order."""
        self._publish([told for event in events for told in self._apply(rank, event)])

    def forget(self, rank: int) -> None:
        """The worker is gone, and its cache with it."""
        self._publish(self._clear(rank))

    async def subscribe(self, after: int) -> AsyncGenerator[pb.KvEventBatch, None]:
        """after: the last number the subscriber has; 0 begins with the state. Raises Overloaded for one who lags or one
        too many."""
        if len(self._subscribers) >= MAX_SUBSCRIBERS:
            raise Overloaded(f"{MAX_SUBSCRIBERS} subscribers already follow the cache", 60.0)
        subscriber = _Subscriber(deque(self._missed(after)))
        subscriber.changed.set()
        self._subscribers.append(subscriber)
        try:
            while not subscriber.lags:
                await subscriber.changed.wait()
                subscriber.changed.clear()
                while subscriber.pending:
                    yield subscriber.pending.popleft()
            raise Overloaded(f"the subscriber lags more than {MAX_PENDING} batches behind", 1.0)
        finally:
            self._subscribers.remove(subscriber)

    def _missed(self, after: int) -> list[pb.KvEventBatch]:
        """What was published since, or all of the state when that is no longer known."""
        if after and self._history and self._history[0].sequence_number <= after + 1 and after <= self.sequence:
            return [batch for batch in self._history if batch.sequence_number > after]
        return self._snapshot()

    def _snapshot(self) -> list[pb.KvEventBatch]:
        blocks = list(self._blocks.values())
        parts = [blocks[at : at + SNAPSHOT_BLOCKS] for at in range(0, len(blocks), SNAPSHOT_BLOCKS)] or [[]]
        first = self.sequence - len(parts) + 1
        cleared = [pb.KvCacheEvent(cleared=pb.KvCacheCleared())]
        return [
            pb.KvEventBatch(
                sequence_number=first + index,
                events=[*(cleared if index == 0 else []), *(self._stored(block, 0) for block in part)],
                snapshot=pb.KvSnapshotChunk(index=index, count=len(parts), blocks=len(blocks)),
            )
            for index, part in enumerate(parts)
        ]

    def _apply(self, rank: int, event: control_pb2.KvEvent) -> Iterable[pb.KvCacheEvent]:
        kind = event.WhichOneof("body")
        if kind == "stored":
            return self._store(rank, event.stored)
        if kind == "removed":
            return self._remove(rank, event.removed)
        return self._clear(rank) if kind == "cleared" else []

    def _store(self, rank: int, block: control_pb2.KvBlock) -> list[pb.KvCacheEvent]:
        self._holders.setdefault(rank, Counter())[block.hash] += 1
        self._copies[block.hash] += 1
        if self._copies[block.hash] > 1:
            return []
        self._blocks[block.hash] = block
        return [self._stored(block, self._next_id())]

    def _remove(self, rank: int, block_hash: int) -> list[pb.KvCacheEvent]:
        held = self._holders.get(rank, Counter())
        if not held[block_hash]:
            return []
        held[block_hash] -= 1
        self._copies[block_hash] -= 1
        if self._copies[block_hash]:
            return []
        del self._copies[block_hash], self._blocks[block_hash]
        removed = pb.KvBlocksRemoved(block_hashes=[_signed(block_hash)])
        return [pb.KvCacheEvent(event_id=self._next_id(), removed=removed)]

    def _clear(self, rank: int) -> list[pb.KvCacheEvent]:
        held = list(self._holders.get(rank, Counter()).elements())
        return [told for block_hash in held for told in self._remove(rank, block_hash)]

    def _stored(self, block: control_pb2.KvBlock, event_id: int) -> pb.KvCacheEvent:
        told = pb.KvBlock(block_hash=_signed(block.hash), token_ids=block.token_ids, block_size=self._block_size)
        parent = _signed(block.parent) if block.HasField("parent") else None
        return pb.KvCacheEvent(event_id=event_id, stored=pb.KvBlocksStored(blocks=[told], parent_block_hash=parent))

    def _publish(self, events: list[pb.KvCacheEvent]) -> None:
        if not events:
            return
        self.sequence += 1
        batch = pb.KvEventBatch(sequence_number=self.sequence, events=events)
        self._history.append(batch)
        for subscriber in self._subscribers:
            subscriber.lags = subscriber.lags or len(subscriber.pending) >= MAX_PENDING
            if not subscriber.lags:
                subscriber.pending.append(batch)
            subscriber.changed.set()

    def _next_id(self) -> int:
        self._event_id += 1
        return self._event_id


def _signed(number: int) -> int:
    """64 unsigned bits as the signed number of the same bits."""
    return number - 2**64 if number >= 2**63 else number
