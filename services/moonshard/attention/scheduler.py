"""Which tokens run in the next iteration. Pure: no clock, tensor or thread.

Continuous batching: sequences join when they are added and leave when they finish, between iterations. Every running
sequence that decodes gets its token first; what is left of the budget goes to prefill chunks in order of arrival.
A sequence's blocks are reserved whole when it is added, so a running sequence never waits for memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from moonshard.attention.blocks import BlockPool, blocks_for
from moonshard.attention.sequence import Sequence
from moonshard.config import AttentionConfig
from moonshard.errors import RequestError


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, start + length) of a sequence run in this step; `samples` when they reach its last token."""

    sequence: Sequence
    start: int
    length: int

    @property
    def samples(self) -> bool:
        return self.start + self.length == len(self.sequence.tokens)

    @property
    def is_decode(self) -> bool:
        return self.length == 1 and self.samples


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One iteration: decodes first, then prefill chunks."""

    decodes: tuple[Chunk, ...]
    prefills: tuple[Chunk, ...]

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return self.decodes + self.prefills

    @property
    def num_tokens(self) -> int:
        return sum(chunk.length for chunk in self.chunks)


class Scheduler:
    """The running batch and its blocks."""

    def __init__(self, limits: AttentionConfig) -> None:
        self.limits = limits
        self.blocks = BlockPool(limits.num_blocks)
        self._running: dict[str, Sequence] = {}

    @property
    def num_running(self) -> int:
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Reserve blocks for the sequence's whole length and run it from the next step on.

        Raises RequestError when it does not fit now; the router, who counts credits, never asks then.
        """
        needed = blocks_for(sequence.max_len, self.limits.block_size)
        if sequence.request_id in self._running:
            raise RequestError("request_id", f"{sequence.request_id!r} is already running")
        if self.num_running >= self.limits.max_num_seqs:
            raise RequestError("request", f"all {self.limits.max_num_seqs} sequence slots are taken")
        if not self.blocks.can_allocate(needed):
            raise RequestError("request", f"needs {needed} KV blocks, {self.blocks.num_free} are free")
        sequence.block_table = self.blocks.allocate(needed)
        self._running[sequence.request_id] = sequence

    def remove(self, request_id: str) -> None:
        """Free a sequence that finished or was aborted; unknown ids are those that finished meanwhile."""
        if sequence := self._running.pop(request_id, None):
            self.blocks.free(sequence.block_table)
            sequence.block_table = []

    def schedule(self) -> StepPlan:
        budget = self.limits.max_step_tokens
        decodes = [Chunk(s, s.num_computed_tokens, 1) for s in self._running.values() if s.num_pending == 1][:budget]
        budget = min(budget - len(decodes), self.limits.prefill_chunk)
        prefills = []
        for sequence in self._running.values():
            if sequence.num_pending > 1 and budget > 0:
                length = min(sequence.num_pending, budget)
                prefills.append(Chunk(sequence, sequence.num_computed_tokens, length))
                budget -= length
        # The ones served go last, so that a budget smaller than the batch still reaches everyone in turn.
        self._rotate(decodes)
        return StepPlan(tuple(decodes), tuple(prefills))

    def commit(self, plan: StepPlan) -> None:
        """Record that a step's tokens are in the cache."""
        for chunk in plan.chunks:
            chunk.sequence.num_computed_tokens += chunk.length

    def _rotate(self, decodes: Iterable[Chunk]) -> None:
        for chunk in decodes:
            self._running[chunk.sequence.request_id] = self._running.pop(chunk.sequence.request_id)
