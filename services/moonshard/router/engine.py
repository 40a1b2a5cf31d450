"""The requests' way through the cell: queue, admission to a worker's batch, tokens back, end.

Every change happens in the event loop's thread and none of these methods awaits, so they need no lock. Knows nothing of
gRPC; `WorkerCalls` carries its decisions out, `membership` decides elsewhere who the workers are.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from moonshard.errors import DeadlineTooClose, MoonshardError, Unavailable
from moonshard.router.account import FreeCredits
from moonshard.router.admission import admit
from moonshard.router.delivery import Delivery, Fate
from moonshard.router.expectations import AdmissionRate, comes_too_late, expected_wait_s, retry_after_s
from moonshard.router.fairness import Ledger
from moonshard.router.fleet import Fleet
from moonshard.router.flight import Flight, SequenceUpdate
from moonshard.router.members import Credits
from moonshard.router.metrics import ABORT, ERROR, RouterMetrics
from moonshard.router.queue import Entry, FairQueue
from moonshard.router.requests import Request

LOSSES_MAX = 5  # attention workers that one sequence may lose
# How far the line is looked at in one go.
LOOK_AHEAD = 32


class WorkerCalls(Protocol):
    """What the engine asks of attention workers; messages to one worker keep their order."""

    def admit(self, rank: int, flights: Sequence[Flight]) -> None: ...

    def abort(self, rank: int, sequence_ids: Sequence[str]) -> None: ...


class Engine:
    """refusal: why new requests are refused now, or None when they are welcome. idle: set while there are none.

    weights: of tenants that the operator named, for the fair queue.
    """

    def __init__(
        self,
        max_queue: int,
        calls: WorkerCalls,
        metrics: RouterMetrics,
        clock: Callable[[], float],
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.refusal: str | None = "the cell is starting"
        self.idle = asyncio.Event()
        self.idle.set()
        self._calls = calls
        self._metrics = metrics
        self._clock = clock
        self._ledger = Ledger(weights)
        self._waiting: FairQueue[Flight] = FairQueue(max_queue, self._ledger)
        self._entries: dict[str, Entry[Flight]] = {}  # by sequence id: waiting and running
        self._fleet = Fleet()
        self._rate = AdmissionRate()
        self._delivery = Delivery(metrics)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return self._fleet.num_running

    @property
    def num_free_tokens(self) -> int:
        """KV cache that nothing has claimed, all attention workers together."""
        rooms = self._fleet.rooms(keeps_reserve=False).values()
        return sum(max(0, room.num_free_blocks) * room.block_size for room in rooms)

    @property
    def has_workers(self) -> bool:
        return len(self._fleet) > 0

    def num_waiting_of(self, tenant: str | None) -> int:
        """Of everybody when None."""
        return len(self._waiting) if tenant is None else self._waiting.num_waiting(tenant)

    def check_open(self) -> None:
        """Raises Unavailable with the refusal."""
        if self.refusal is not None:
            raise Unavailable(self.refusal)

    def submit(self, flights: Sequence[Flight]) -> None:
        """Queue the sequences of one request, all or none. Raises Unavailable, or Overloaded when the queue is full or
        so long that the request's deadline would pass in it."""
        self.check_open()
        self._waiting.check_room(len(flights), self._retry_after_s)
        self._check_deadline(flights[0].request)
        for flight in flights:
            request = flight.request
            entry = Entry(flight.sequence_id, request.tenant, request.priority, len(request.prompt_token_ids), flight)
            self._ledger.opened(request.tenant)
            self._waiting.push(entry)
            self._entries[flight.sequence_id] = entry
        self.idle.clear()
        self._pump()

    def abandon(self, flights: Iterable[Flight]) -> None:
        """The caller left; those that have ended already are passed over."""
        for flight in flights:
            if flight.sequence_id in self._entries:
                self._cut(flight)
                flight.end = ABORT
                self._end(flight)
        self._pump()

    def add_worker(self, rank: int, credits: Credits) -> None:
        self._fleet.add(rank, credits)
        self._pump()

    def remove_worker(self, rank: int, problem: str) -> None:
        """Fail the worker's requests with Unavailable."""
        if self._fleet.has(rank):
            self._fail(self._fleet.flights_of(rank), problem)
            self._fleet.remove(rank)

    def readmit_worker(self, rank: int, problem: str) -> int:
        """The worker is gone: its sequences go on elsewhere, or on this rank when it is back, with their output so far.

        They stand before everybody who waits. Returns how many they are. Those that have lost LOSSES_MAX workers fail:
        one of them may be what kills workers.
        """
        if not self._fleet.has(rank):
            return 0
        flights = self._fleet.flights_of(rank)
        for flight in flights:
            flight.num_losses += 1
        self._fail([flight for flight in flights if flight.num_losses >= LOSSES_MAX], problem)
        flights = self._fleet.flights_of(rank)
        for flight in flights:
            self._return(flight)
        self._fleet.remove(rank)
        self._pump()
        return len(flights)

    def close_worker(self, rank: int) -> None:
        """Admit nobody there any more; what runs goes on."""
        self._fleet.close(rank)

    def reopen_worker(self, rank: int) -> None:
        self._fleet.reopen(rank)
        self._pump()

    def hand_over(self, rank: int) -> int:
        """A closed worker's sequences go on elsewhere with their output so far, before everybody who waits. Returns how
        many they are. The worker must be quiet before it is opened again: what it still says of them is void."""
        flights = self._fleet.flights_of(rank)
        for flight in flights:
            self._cut(flight)
            self._return(flight)
        self._pump()
        return len(flights)

    def num_running_at(self, rank: int) -> int:
        return len(self._fleet.flights_of(rank))

    def is_quiet(self, rank: int) -> bool:
        """Whether the worker runs nothing and has said so."""
        return self._fleet.is_quiet(rank)

    def fail_all(self, problem: str) -> None:
        """Fail every request, waiting or running, with Unavailable; workers forget the running ones."""
        flights = [entry.item for entry in self._entries.values()]
        for flight in flights:
            self._cut(flight)
        self._fail(flights, problem)

    def update(self, rank: int, updates: Sequence[SequenceUpdate], free: FreeCredits | None = None) -> None:
        """News from a worker, and what it can take now. Sequences that were aborted meanwhile are passed over."""
        now_s = self._clock()
        for update in updates:
            if flight := self._fleet.find(rank, update.sequence_id):
                self._apply(flight, update, now_s)
        if free is not None:
            self._fleet.told(rank, free)
        self._pump()

    def note_batch(self, num_sequences: int) -> None:
        """So many sequences had news in one iteration of a worker."""
        if num_sequences:
            self._metrics.batch_size.observe(num_sequences)

    def has_begun(self, rank: int, sequence_id: str) -> bool:
        """Whether this sequence of the worker's has said anything yet."""
        flight = self._fleet.find(rank, sequence_id)
        return flight is not None and flight.num_generated > 0

    def _apply(self, flight: Flight, update: SequenceUpdate, now_s: float) -> None:
        num_before = flight.num_generated
        fate = self._delivery.deliver(flight, update, now_s)
        self._ledger.charge(flight.request.tenant, flight.num_generated - num_before)
        if flight.prefill_tokens and update.token_ids:
            self._fleet.prefilled(flight)
        if fate is Fate.CUT:
            self._cut(flight)
        if fate is Fate.PREEMPTED:
            self._metrics.preemptions.inc()
            self._return(flight)
        elif fate is not Fate.RUNS:
            self._end(flight)

    def _pump(self) -> None:
        """Admit whom the free credits allow."""
        joining: dict[int, list[Flight]] = defaultdict(list)
        while len(self._waiting) and self._fleet.has_slot:
            if not self._admit_some(joining):
                break
        for rank, flights in joining.items():
            self._calls.admit(rank, flights)
        self._metrics.show(self.num_waiting, self.num_running)

    def _admit_some(self, joining: dict[int, list[Flight]]) -> bool:
        """Look at the head of the line once; whether anybody was admitted."""
        entries = self._waiting.ahead(LOOK_AHEAD)
        demands = {entry.id: self._fleet.demand(entry, self._ledger.is_newcomer(entry.tenant)) for entry in entries}
        rooms = self._fleet.rooms(keeps_reserve=self._ledger.expects_others)
        admission = admit(demands.values(), rooms.values())
        for entry_id, num_passed in admission.passed.items():
            self._entries[entry_id].num_passed += num_passed
        for assignment in admission.assignments:
            entry = self._waiting.take(assignment.id)
            assert entry is not None, "admit answers with ids of the queue"
            self._fleet.join(entry.item, demands[entry.id], rooms[assignment.rank])
            self._started(entry)
            joining[assignment.rank].append(entry.item)
        return bool(admission.assignments)

    def _started(self, entry: Entry[Flight]) -> None:
        flight, now_s = entry.item, self._clock()
        self._ledger.started(entry.tenant)
        self._rate.add(now_s, len(self._waiting))
        if not entry.returned:
            self._ledger.charge(entry.tenant, entry.num_tokens)
            flight.admitted_s = now_s
            self._metrics.admitted(flight)

    def _return(self, flight: Flight) -> None:
        """From its worker to the front of the line."""
        self._leave_worker(flight)
        self._waiting.push_back_first(self._entries[flight.sequence_id])

    def _cut(self, flight: Flight) -> None:
        """Tell the worker that runs it, if one does."""
        if flight.rank is not None:
            self._calls.abort(flight.rank, [flight.sequence_id])

    def _leave_worker(self, flight: Flight) -> None:
        if flight.rank is not None:
            self._fleet.leave(flight)
            self._ledger.stopped(flight.request.tenant)

    def _fail(self, flights: Sequence[Flight], problem: str) -> None:
        error: MoonshardError = Unavailable(problem)
        for flight in flights:
            flight.answer.fail(error)
            flight.end = ERROR
            self._end(flight)
        self._metrics.show(self.num_waiting, self.num_running)

    def _end(self, flight: Flight) -> None:
        self._leave_worker(flight)
        self._waiting.take(flight.sequence_id)
        del self._entries[flight.sequence_id]
        self._ledger.closed(flight.request.tenant)
        if not self._entries:
            self.idle.set()
        self._metrics.ended(flight.end)

    def _check_deadline(self, request: Request) -> None:
        """A request that would wait past its deadline would only take the place of one that would not."""
        if request.deadline_s is None:
            return
        now_s = self._clock()
        wait_s = expected_wait_s(
            len(self._waiting),
            self._waiting.num_waiting(request.tenant),
            self._ledger.share(request.tenant),
            self._rate.per_second(now_s),
        )
        if comes_too_late(wait_s, left_s := request.deadline_s - now_s):
            raise DeadlineTooClose(f"the wait is {wait_s:.1f} s, the deadline in {left_s:.1f} s", self._retry_after_s())

    def _retry_after_s(self) -> float:
        return retry_after_s(len(self._waiting), self._rate.per_second(self._clock()))
