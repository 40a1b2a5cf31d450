"""Who of the waiting joins which attention worker's batch. Pure: values in, values out.

A sequence joins when a slot is free, when the free blocks hold what must be in the cache before its next token and one
block more, and when the prompts that the worker still has to run leave room in its prefill budget: beyond that a worker
gains nothing from having it, and the queue would lose its say over the order.

What fits nowhere is passed by those behind it, but not for ever: after MAX_PASSED it claims a worker, which then takes
nobody else until it fits there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

MAX_PASSED = 64

# Where slots are kept for newcomers, their prompts may exceed the prefill budget so many times.
NEWCOMERS_BUDGET = 2

# What a running sequence counts when workers are compared, in prompt tokens.
RUNNING_COST = 16


@dataclass(frozen=True, slots=True)
class Demand:
    """A waiting sequence.

    num_tokens: prompt and output so far. max_len: tokens of KV cache it may come to need. num_passed: how often it was
    passed; MAX_PASSED from the start for what came back from a worker. is_newcomer: its tenant has nothing running.
    num_cached: by rank, prompt tokens that the worker's prefix cache probably holds.
    """

    id: str
    num_tokens: int
    max_len: int
    num_passed: int = 0
    is_newcomer: bool = True
    num_cached: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Room:
    """What an attention worker can still take.

    num_blocks: all it has. num_free_blocks: less what was sent since the worker told.
    num_prefill_tokens: prompts still to be run, each counted as one step's worth at most. reserved_seqs,
    reserved_blocks: kept for tenants that have nothing running.
    """

    rank: int
    block_size: int
    num_blocks: int
    num_free_blocks: int
    num_free_seqs: int
    max_step_tokens: int
    prefill_budget: int
    num_prefill_tokens: int = 0
    num_running: int = 0
    reserved_seqs: int = 0
    reserved_blocks: int = 0

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def blocks_to_start(self, demand: Demand) -> int:
        """Blocks that must be free: what it has, and one to grow into unless it never will."""
        return min(self.blocks_for(demand.num_tokens) + 1, self.blocks_for(demand.max_len))

    def can_ever_hold(self, demand: Demand) -> bool:
        return self.blocks_for(demand.max_len) <= self.num_blocks

    def fits(self, demand: Demand) -> bool:
        if not self.can_ever_hold(demand):
            return False
        kept_seqs, kept_blocks = self._kept_from(demand)
        return (
            self.num_free_seqs > kept_seqs
            and self.blocks_to_start(demand) <= self.num_free_blocks - kept_blocks
            and self._has_prefill_room(demand)
        )

    def prefill_share(self, demand: Demand) -> int:
        """What its prompt counts within the budget: a long one takes one step's worth of each step, not more."""
        return min(demand.num_tokens, self.max_step_tokens)

    def with_(self, demand: Demand) -> "Room":
        return replace(
            self,
            num_free_blocks=self.num_free_blocks - self.blocks_to_start(demand),
            num_free_seqs=self.num_free_seqs - 1,
            num_prefill_tokens=self.num_prefill_tokens + self.prefill_share(demand),
            num_running=self.num_running + 1,
        )

    def cost(self, demand: Demand) -> tuple[int, int, int]:
        """The least is the best place: prompt tokens to run before its first token, then free blocks, then rank."""
        uncached = demand.num_tokens - demand.num_cached.get(self.rank, 0)
        work = self.num_prefill_tokens + uncached + RUNNING_COST * self.num_running
        return work, -self.num_free_blocks, self.rank

    def _kept_from(self, demand: Demand) -> tuple[int, int]:
        if demand.is_newcomer or not self.num_running:
            return 0, 0
        return self.reserved_seqs, self.reserved_blocks

    def _has_prefill_room(self, demand: Demand) -> bool:
        if not self.num_prefill_tokens:
            return True
        budget = self.prefill_budget * (NEWCOMERS_BUDGET if demand.is_newcomer and self.reserved_seqs else 1)
        return self.num_prefill_tokens + self.prefill_share(demand) <= budget


@dataclass(frozen=True, slots=True)
class Assignment:
    id: str
    rank: int


@dataclass(frozen=True, slots=True)
class Admission:
    """assignments: who joins where, in the order in which to tell. passed: by id, how many went before."""

    assignments: Sequence[Assignment]
    passed: Mapping[str, int]


def admit(waiting: Iterable[Demand], rooms: Iterable[Room]) -> Admission:
    """Go through the line once, in its order."""
    free = {room.rank: room for room in rooms}
    open_ranks = set(free)
    assignments: list[Assignment] = []
    stuck: list[Demand] = []
    passed: dict[str, int] = {}
    for demand in waiting:
        if not open_ranks:
            break
        able = [free[rank] for rank in open_ranks if free[rank].fits(demand)]
        if able:
            best = min(able, key=lambda room: room.cost(demand))
            free[best.rank] = best.with_(demand)
            assignments.append(Assignment(demand.id, best.rank))
            for other in stuck:
                passed[other.id] = passed.get(other.id, 0) + 1
        else:
            stuck.append(demand)
        for other in stuck:
            if other.num_passed + passed.get(other.id, 0) >= MAX_PASSED:
                _claim(other, free, open_ranks)
        stuck = [other for other in stuck if other.num_passed + passed.get(other.id, 0) < MAX_PASSED]
    return Admission(assignments, passed)


def _claim(demand: Demand, free: Mapping[int, Room], open_ranks: set[int]) -> None:
    """Close the worker where it is likely to fit soonest."""
    able = [free[rank] for rank in open_ranks if free[rank].can_ever_hold(demand)]
    if able:
        open_ranks.remove(max(able, key=lambda room: (room.num_free_blocks, room.num_free_seqs, -room.rank)).rank)
