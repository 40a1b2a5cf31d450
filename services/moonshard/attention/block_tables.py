"""Gives sequences their KV blocks: from the prefix cache what was computed before, blank ones for the rest. Pure.

A block enters the prefix cache when it is full and computed. Of a sequence's known tokens the last is always run
anew, since its logits are wanted; so the block that holds it is never taken from the cache.
"""

from dataclasses import dataclass

from moonshard.attention.blocks import BlockPool, blocks_for
from moonshard.attention.prefix_hashes import Digest, extend_hashes, short_hash
from moonshard.attention.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Stored:
    """A block became findable. parent: hash of the block before it, None for the first."""

    hash: int
    parent: int | None
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Removed:
    hash: int


@dataclass(frozen=True, slots=True)
class Cleared:
    """Nothing is findable any more."""


CacheEvent = Stored | Removed | Cleared


class BlockTables:
    """Writes sequences' block_table and num_computed_tokens. num_queried, num_hit: tokens asked of the prefix cache."""

    def __init__(self, num_blocks: int, block_size: int, prefix_cache: bool) -> None:
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self.num_queried = 0
        self.num_hit = 0
        self._prefix_cache = prefix_cache
        self._events: list[CacheEvent] = []

    def admit(self, sequence: Sequence) -> bool:
        """Blocks for all its tokens so far, those in the cache shared. False when they are not to be had now."""
        self._hash(sequence)
        found = self._findable(sequence)
        for block in found:
            self.pool.share(block)
        num_blank = blocks_for(len(sequence.tokens), self.block_size) - len(found)
        if not self.pool.can_allocate(num_blank):
            self.pool.release(reversed(found))
            return False
        sequence.block_table = found + self.pool.allocate(num_blank)
        self._count(sequence, len(found) * self.block_size)
        self.num_queried += len(sequence.tokens) if self._prefix_cache else 0
        return True

    def adopt(self, sequence: Sequence) -> None:
        """Take over what another sequence has computed of its next blocks since it was admitted."""
        while (digest := self.frontier(sequence)) is not None and (block := self.pool.find(digest)) is not None:
            index = sequence.num_computed_tokens // self.block_size
            self.pool.share(block)
            self.pool.release([sequence.block_table[index]])
            sequence.block_table[index] = block
            self._count(sequence, (index + 1) * self.block_size - sequence.num_computed_tokens)

    def frontier(self, sequence: Sequence) -> Digest | None:
        """Digest of the block that it computes next, if the cache may give it instead, and would get it from here."""
        if sequence.num_degraded:
            return None
        index = sequence.num_computed_tokens // self.block_size
        return sequence.digests[index] if index < self._num_usable(sequence) else None

    def has_room(self, sequence: Sequence) -> bool:
        """Whether its next token has a slot."""
        return sequence.num_computed_tokens < len(sequence.block_table) * self.block_size

    def grow(self, sequence: Sequence) -> None:
        sequence.block_table += self.pool.allocate(1)

    def publish(self, sequence: Sequence, start: int) -> None:
        """Its tokens [start, num_computed_tokens) have been computed: full blocks of them become findable."""
        if not self._prefix_cache or sequence.num_degraded:
            return
        self._hash(sequence)
        for index in range(start // self.block_size, sequence.num_computed_tokens // self.block_size):
            if self.pool.publish(sequence.block_table[index], sequence.digests[index]):
                self._tell_stored(sequence, index)

    def release(self, sequence: Sequence, spoilt: bool = False) -> None:
        """Take all its blocks back; spoilt: nobody else shall read them."""
        if spoilt:
            self.pool.forget(sequence.block_table)
        # The end of a sequence is the least likely to be asked for again.
        self.pool.release(reversed(sequence.block_table))
        sequence.block_table = []

    def flush(self) -> None:
        """Forget every cached block that is not in use."""
        self.pool.forget_unused()
        if self.pool.num_known == 0:
            self._tell_removed()
            self._events.append(Cleared())

    def take_events(self) -> list[CacheEvent]:
        """What happened in the cache since the last call, in order."""
        self._tell_removed()
        events, self._events = self._events, []
        return events

    def _hash(self, sequence: Sequence) -> None:
        if self._prefix_cache:
            extend_hashes(sequence.digests, sequence.tokens, self.block_size, sequence.salts)

    def _findable(self, sequence: Sequence) -> list[int]:
        found: list[int] = []
        for digest in sequence.digests[: self._num_usable(sequence)]:
            if (block := self.pool.find(digest)) is None:
                break
            found.append(block)
        return found

    def _num_usable(self, sequence: Sequence) -> int:
        return (
            0 if sequence.scores_prompt else min(len(sequence.digests), (len(sequence.tokens) - 1) // self.block_size)
        )

    def _count(self, sequence: Sequence, num_cached: int) -> None:
        sequence.num_computed_tokens += num_cached
        sequence.num_cached_tokens += num_cached
        self.num_hit += num_cached

    def _tell_stored(self, sequence: Sequence, index: int) -> None:
        self._tell_removed()
        size, digests = self.block_size, sequence.digests
        parent = short_hash(digests[index - 1]) if index else None
        tokens = tuple(sequence.tokens[index * size : (index + 1) * size])
        self._events.append(Stored(short_hash(digests[index]), parent, tokens))

    def _tell_removed(self) -> None:
        self._events += [Removed(short_hash(digest)) for digest in self.pool.forgotten]
        self.pool.forgotten.clear()
