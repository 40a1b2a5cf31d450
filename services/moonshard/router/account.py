"""What one attention worker can take: what it told last, less what was sent since."""

from collections import deque
from dataclasses import dataclass

from moonshard.router.admission import Demand, Room
from moonshard.router.flight import Flight
from moonshard.router.members import Credits

# Steps' worth of prompts that a worker holds at most: one that runs, and one that is there when the router's next
# message is still on its way. More would be a queue behind the queue.
PREFILL_STEPS = 2

# Of slots and blocks, one part in so many is kept for tenants that have nothing running.
RESERVED_PART = 16


@dataclass(frozen=True, slots=True)
class FreeCredits:
    """As a worker tells it. num_admitted: sequences it has taken from Admit messages since its start.

    num_pending_tokens: prompt tokens of its running sequences that are still to be run; their blocks are taken.
    """

    num_free_blocks: int
    num_free_seqs: int
    num_admitted: int = 0
    num_pending_tokens: int = 0


class WorkerAccount:
    """flights: by sequence id, what it runs. Blocks of an aborted sequence count as free once the worker says so."""

    def __init__(self, rank: int, credits: Credits) -> None:
        self.rank = rank
        self.credits = credits
        self.flights: dict[str, Flight] = {}
        self._free = FreeCredits(credits.num_blocks, credits.max_num_seqs)
        self._sent: deque[int] = deque()  # blocks of sequences that the worker has not taken yet
        self._num_sent_blocks = 0
        self._num_prefill_tokens = 0

    @property
    def has_slot(self) -> bool:
        return self._free.num_free_seqs > len(self._sent)

    @property
    def is_quiet(self) -> bool:
        """Nothing runs there, nothing is on its way there, and the worker has said so."""
        return not self.flights and not self._sent and self._free.num_free_seqs == self.credits.max_num_seqs

    def told(self, free: FreeCredits) -> None:
        for _ in range(min(free.num_admitted - self._free.num_admitted, len(self._sent))):
            self._num_sent_blocks -= self._sent.popleft()
        self._free = free

    def room(self, keeps_reserve: bool) -> Room:
        credits, free = self.credits, self._free
        return Room(
            rank=self.rank,
            block_size=credits.block_size,
            num_blocks=credits.num_blocks,
            num_free_blocks=free.num_free_blocks - self._num_sent_blocks,
            num_free_seqs=free.num_free_seqs - len(self._sent),
            max_step_tokens=credits.max_step_tokens,
            prefill_budget=PREFILL_STEPS * credits.max_step_tokens,
            num_prefill_tokens=self._num_prefill_tokens,
            num_running=len(self.flights),
            reserved_seqs=credits.max_num_seqs // RESERVED_PART if keeps_reserve else 0,
            reserved_blocks=credits.num_blocks // RESERVED_PART if keeps_reserve else 0,
        )

    def join(self, flight: Flight, demand: Demand, room: Room) -> None:
        """The flight is being sent to the worker."""
        self.flights[flight.sequence_id] = flight
        self._sent.append(room.blocks_to_start(demand))
        self._num_sent_blocks += self._sent[-1]
        flight.prefill_tokens = room.prefill_share(demand)
        self._num_prefill_tokens += flight.prefill_tokens

    def prefilled(self, flight: Flight) -> None:
        """Its prompt has been run."""
        self._num_prefill_tokens -= flight.prefill_tokens
        flight.prefill_tokens = 0

    def leave(self, flight: Flight) -> None:
        del self.flights[flight.sequence_id]
        self.prefilled(flight)
