"""An attention worker in a few lines and in virtual time: slots, blocks, chunked prefill, preemption.

Prompts get their blocks when they join, output as it comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moonshard.router.account import FreeCredits
from moonshard.router.flight import Flight, SequenceUpdate
from moonshard.router.members import Credits
from moonshard.sampling import FinishReason


@dataclass
class Running:
    """num_cached: tokens in the cache; num_blocks: what they hold."""

    sequence_id: str
    prompt_len: int
    max_tokens: int
    num_generated: int
    num_cached: int = 0
    num_blocks: int = 0

    @property
    def num_tokens(self) -> int:
        return self.prompt_len + self.num_generated


def token(position: int) -> int:
    """What every sequence says at this place of its output."""
    return 97 + position % 26


class SimulatedWorker:
    """Orders wait until the next step, as they do in the real one's inbox."""

    def __init__(self, credits: Credits) -> None:
        self.credits = credits
        self.running: list[Running] = []  # oldest first
        self.num_admitted = 0
        self.num_preempted = 0
        self._orders: list[Running | str] = []

    def admit(self, flights: Sequence[Flight]) -> None:
        for flight in flights:
            request = flight.request
            told = Running(
                flight.sequence_id, len(request.prompt_token_ids), request.max_tokens, len(flight.output.token_ids)
            )
            self.enqueue(told)

    def enqueue(self, told: Running) -> None:
        assert told.num_generated < told.max_tokens, "a finished sequence is not admitted again"
        self._orders.append(told)

    def abort(self, sequence_ids: Sequence[str]) -> None:
        self._orders += sequence_ids

    @property
    def is_idle(self) -> bool:
        return not self.running and not self._orders

    @property
    def num_free_blocks(self) -> int:
        return self.credits.num_blocks - sum(running.num_blocks for running in self.running)

    def free(self) -> FreeCredits:
        pending = sum(max(running.num_tokens - running.num_cached - 1, 0) for running in self.running)
        num_free_seqs = self.credits.max_num_seqs - len(self.running)
        return FreeCredits(self.num_free_blocks, num_free_seqs, self.num_admitted, pending)

    def step(self) -> tuple[list[SequenceUpdate], int]:
        """One iteration: what it says, and how many tokens it ran."""
        updates = self._obey()
        budget = self.credits.max_step_tokens
        for running in sorted(self.running, key=lambda r: r.num_tokens - r.num_cached):
            if running not in self.running:  # preempted for an earlier one
                continue
            length = min(running.num_tokens - running.num_cached, budget)
            updates += self._make_room(running, running.num_cached + length)
            if running not in self.running or not length:
                continue
            budget -= length
            running.num_cached += length
            if running.num_cached == running.num_tokens:
                updates.append(self._sample(running))
        return updates, self.credits.max_step_tokens - budget

    def _obey(self) -> list[SequenceUpdate]:
        updates = []
        for order in self._orders:
            if isinstance(order, str):
                self.running = [running for running in self.running if running.sequence_id != order]
                continue
            self.num_admitted += 1
            whole = order.prompt_len + order.max_tokens
            assert -(-whole // self.credits.block_size) <= self.credits.num_blocks, "can never fit: the router's fault"
            needed = -(-order.num_tokens // self.credits.block_size)
            if len(self.running) < self.credits.max_num_seqs and needed <= self.num_free_blocks:
                order.num_blocks = needed
                self.running.append(order)
            else:
                updates.append(SequenceUpdate(order.sequence_id, (), preempted=True))
        self._orders.clear()
        return updates

    def _make_room(self, running: Running, num_tokens: int) -> list[SequenceUpdate]:
        needed = max(0, -(-num_tokens // self.credits.block_size) - running.num_blocks)
        preempted = []
        while needed > self.num_free_blocks and running in self.running:
            youngest = self.running.pop()
            self.num_preempted += 1
            preempted.append(SequenceUpdate(youngest.sequence_id, (), preempted=True))
        if running in self.running:
            running.num_blocks += needed
        return preempted

    def _sample(self, running: Running) -> SequenceUpdate:
        said = token(running.num_generated)
        running.num_generated += 1
        reason = FinishReason.LENGTH if running.num_generated == running.max_tokens else None
        if reason:
            self.running.remove(running)
        return SequenceUpdate(running.sequence_id, (said,), reason)
