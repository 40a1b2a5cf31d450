"""Which tokens run in the next iteration. Pure: no clock, tensor or thread.

Continuous batching: sequences join when they are added and leave when they finish, between iterations. Every running
sequence that decodes gets its token first; what is left of the budget goes to prefill chunks.

Prompts get their blocks when they join, generated tokens as they come. When there is none for a token, the youngest
sequence is preempted: its blocks are free, and it is the router's again. The oldest is never preempted for another, and
alone it fits, so something always runs to its end. Sequences that await their grammar keep what they have and do not
run.
"""

from moonshard.attention.block_tables import BlockTables
from moonshard.attention.blocks import blocks_for
from moonshard.attention.plan import Chunk, StepPlan
from moonshard.attention.prefill import share_budget
from moonshard.attention.prefix_hashes import Digest
from moonshard.attention.sequence import Sequence
from moonshard.config import AttentionConfig
from moonshard.errors import RequestError


class Scheduler:
    """The running batch and its blocks."""

    def __init__(self, limits: AttentionConfig) -> None:
        self.limits = limits
        self.tables = BlockTables(limits.num_blocks, limits.block_size, limits.prefix_cache)
        self.num_preempted = 0
        self._num_added = 0
        self._running: dict[str, Sequence] = {}

    @property
    def running_ids(self) -> list[str]:
        return list(self._running)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Whether anything can run in the next step."""
        return any(not s.awaits_grammar for s in self._running.values())

    def runs(self, sequence: Sequence) -> bool:
        """Whether it is this very sequence that has a place in the batch; from any thread."""
        return self._running.get(sequence.request_id) is sequence

    @property
    def num_pending_tokens(self) -> int:
        """Prompt tokens of running sequences that are still to be run."""
        return sum(s.num_pending for s in self._running.values() if s.num_pending > 1)

    def add(self, sequence: Sequence) -> bool:
        """Give the sequence its blocks and run it from the next step on; False when it must wait at the router.

        Raises RequestError when it can never run here.
        """
        self._check(sequence)
        if self.num_running >= self.limits.max_num_seqs or not self.tables.admit(sequence):
            return False
        sequence.number = self._num_added
        self._num_added += 1
        self._running[sequence.request_id] = sequence
        return True

    def remove(self, request_id: str, spoilt: bool = False) -> None:
        """Free a sequence that finished or was aborted; unknown ids are those that finished meanwhile.

        spoilt: what it left in the cache shall not be read by others.
        """
        if sequence := self._running.pop(request_id, None):
            self.tables.release(sequence, spoilt)

    def schedule(self) -> StepPlan:
        """Allocates what the step's tokens need; sequences that were preempted for it are gone from the batch."""
        budget = self.limits.max_step_tokens
        decodes, preempted = self._decodes(budget)
        prefills = self._prefills(min(budget - len(decodes), self.limits.prefill_chunk))
        return StepPlan(tuple(decodes), tuple(prefills), tuple(preempted))

    def commit(self, plan: StepPlan) -> None:
        """Record that a step's tokens are in the cache."""
        for chunk in plan.chunks:
            chunk.sequence.num_computed_tokens += chunk.length
            self.tables.publish(chunk.sequence, chunk.start)

    def _check(self, sequence: Sequence) -> None:
        needed = blocks_for(sequence.max_len, self.limits.block_size)
        if sequence.request_id in self._running:
            raise RequestError("request_id", f"{sequence.request_id!r} is already running")
        if needed > self.limits.num_blocks:
            raise RequestError("request", f"needs {needed} KV blocks, this worker has {self.limits.num_blocks}")
        if len(sequence.tokens) >= sequence.max_len:
            raise RequestError("output_token_ids", f"{len(sequence.output)} leave none of max_tokens to generate")

    def _decodes(self, budget: int) -> tuple[list[Chunk], list[Sequence]]:
        ready = [s for s in self._running.values() if s.num_pending == 1 and not s.awaits_grammar][:budget]
        preempted: list[Sequence] = []
        for sequence in sorted(ready, key=_age):
            while sequence.request_id in self._running and not self.tables.has_room(sequence):
                self._make_room(sequence, preempted)
        chunks = [Chunk(s, s.num_computed_tokens, 1) for s in ready if s.request_id in self._running]
        # The ones served go last, so that a budget smaller than the batch still reaches everyone in turn.
        for chunk in chunks:
            self._running[chunk.sequence.request_id] = self._running.pop(chunk.sequence.request_id)
        return chunks, preempted

    def _make_room(self, sequence: Sequence, preempted: list[Sequence]) -> None:
        """A block for its next token, or one sequence less: the youngest, which may be this one."""
        if self.tables.pool.can_allocate(1):
            self.tables.grow(sequence)
            return
        youngest = max(self._running.values(), key=_age)
        self.remove(youngest.request_id)
        self.num_preempted += 1
        preempted.append(youngest)

    def _prefills(self, budget: int) -> list[Chunk]:
        able = self._able_to_prefill() if budget > 0 else []
        shares = share_budget([s.num_pending for s in able], budget)
        return [Chunk(s, s.num_computed_tokens, n) for s, n in zip(able, shares, strict=True) if n]

    def _able_to_prefill(self) -> list[Sequence]:
        """Oldest first, without those whose next block an older one is about to compute: they will share it."""
        able: list[Sequence] = []
        claimed: set[Digest] = set()
        pending = (s for s in self._running.values() if s.num_pending > 1 and not s.awaits_grammar)
        for sequence in sorted(pending, key=_age):
            self.tables.adopt(sequence)
            frontier = self.tables.frontier(sequence)
            if frontier is None or frontier not in claimed:
                able.append(sequence)
            if frontier is not None:
                claimed.add(frontier)
        return able


def _age(sequence: Sequence) -> int:
    return sequence.number
