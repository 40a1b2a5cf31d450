"""Who of the waiting joins which attention worker's batch. Pure: values in, values out.

A sequence reserves a slot and the KV blocks of its whole possible length: nothing admitted ever waits for memory.
Order is kept: when the oldest request fits nowhere, those behind it wait as well, else a long one would starve.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Demand:
    """max_len: tokens of KV cache that the request may come to need."""

    id: str
    max_len: int


@dataclass(frozen=True, slots=True)
class FreeCredits:
    """What an attention worker can still take."""

    rank: int
    block_size: int
    num_free_blocks: int
    num_free_seqs: int

    def blocks_for(self, max_len: int) -> int:
        return -(-max_len // self.block_size)

    def fits(self, max_len: int) -> bool:
        return self.num_free_seqs > 0 and self.blocks_for(max_len) <= self.num_free_blocks

    def reserve(self, max_len: int) -> "FreeCredits":
        return self._change(-self.blocks_for(max_len), -1)

    def release(self, max_len: int) -> "FreeCredits":
        return self._change(self.blocks_for(max_len), 1)

    def _change(self, num_blocks: int, num_seqs: int) -> "FreeCredits":
        return replace(
            self,
            num_free_blocks=self.num_free_blocks + num_blocks,
            num_free_seqs=self.num_free_seqs + num_seqs,
        )


@dataclass(frozen=True, slots=True)
class Assignment:
    id: str
    rank: int
    num_blocks: int


def admit(waiting: Iterable[Demand], workers: Iterable[FreeCredits]) -> Iterator[Assignment]:
    """Assignments in order of arrival, each to the worker with most free blocks (the lowest rank of equals)."""
    free = {worker.rank: worker for worker in workers}
    for demand in waiting:
        able = [worker for worker in free.values() if worker.fits(demand.max_len)]
        if not able:
            return
        best = max(able, key=lambda worker: (worker.num_free_blocks, -worker.rank))
        free[best.rank] = best.reserve(demand.max_len)
        yield Assignment(demand.id, best.rank, best.blocks_for(demand.max_len))
