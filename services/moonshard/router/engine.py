"""The requests' way through the cell: queue, admission to a worker's batch, tokens back, end.

Every change happens in the event loop's thread and none of these methods awaits, so they need no lock. Knows nothing of
gRPC; `WorkerCalls` carries its decisions out, `membership` decides elsewhere who the workers are.
"""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from moonshard.errors import Aborted, DuplicateRequest, MoonshardError, Unavailable
from moonshard.router.admission import Demand, FreeCredits, admit
from moonshard.router.membership import Credits
from moonshard.router.metrics import ABORT, ERROR, RouterMetrics
from moonshard.router.output import OutputStream
from moonshard.router.queue import WaitingQueue
from moonshard.router.requests import Finish, Request, Timings
from moonshard.sampling import FinishReason


@dataclass(frozen=True, slots=True)
class SequenceUpdate:
    """News of one sequence from its worker. finish_reason or error set: it is over and its blocks are free."""

    sequence_id: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error: str = ""


@dataclass(slots=True)
class Flight:
    """A request between submission and end. sequence_id: its name on the wire, never used twice.

    The caller's id may come back at once after an abort, while tokens of its former life are still on their way.
    """

    request: Request
    sequence_id: str
    output: OutputStream = field(default_factory=OutputStream)
    rank: int | None = None
    admitted_s: float = 0.0
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    num_generated: int = 0

    @property
    def demand(self) -> Demand:
        return Demand(self.request.id, self.request.max_len)


class WorkerCalls(Protocol):
    """What the engine asks of attention workers; messages to one worker keep their order."""

    def admit(self, rank: int, flights: Sequence[Flight]) -> None: ...

    def abort(self, rank: int, sequence_ids: Sequence[str]) -> None: ...


class Engine:
    """refusal: why new requests are refused now, or None when they are welcome. idle: set while there are none."""

    def __init__(self, max_queue: int, calls: WorkerCalls, metrics: RouterMetrics, clock: Callable[[], float]) -> None:
        self.refusal: str | None = "the cell is starting"
        self._calls = calls
        self._metrics = metrics
        self._clock = clock
        self._flights: dict[str, Flight] = {}  # by request id: waiting and running
        self._running: dict[str, Flight] = {}  # by sequence id
        self._waiting: WaitingQueue[Flight] = WaitingQueue(max_queue)
        self._credits: dict[int, FreeCredits] = {}
        self._numbers = itertools.count()
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_workers(self) -> bool:
        return bool(self._credits)

    def check_open(self) -> None:
        """Raises Unavailable with the refusal."""
        if self.refusal is not None:
            raise Unavailable(self.refusal)

    def submit(self, request: Request) -> Flight:
        """Queue a request. Raises Unavailable, DuplicateRequest or Overloaded."""
        self.check_open()
        if request.id in self._flights:
            raise DuplicateRequest("request_id", f"{request.id!r} is in use")
        flight = Flight(request, f"{request.id}#{next(self._numbers)}")
        self._waiting.push(request.id, flight)
        self._flights[request.id] = flight
        self.idle.clear()
        self._pump()
        return flight

    def abandon(self, flight: Flight) -> None:
        """The caller left; nothing happens when the request has ended already.

        Its blocks count as free at once: the worker handles this Abort before any later Admit of the same stream.
        """
        if self._flights.get(flight.request.id) is not flight:
            return
        if flight.rank is not None:
            self._calls.abort(flight.rank, [flight.sequence_id])
        self._end(flight, ABORT)
        self._pump()

    def abort(self, request_id: str) -> bool:
        """End a request on somebody's word: its caller meets Aborted. False when there is none of this id."""
        flight = self._flights.get(request_id)
        if flight is None:
            return False
        flight.output.fail(Aborted(f"request {request_id!r} was aborted"))
        self.abandon(flight)
        return True

    def add_worker(self, rank: int, credits: Credits) -> None:
        self._credits[rank] = FreeCredits(rank, credits.block_size, credits.num_blocks, credits.max_num_seqs)
        self._pump()

    def remove_worker(self, rank: int, problem: str) -> None:
        """Fail the worker's requests with Unavailable."""
        self._credits.pop(rank, None)
        self._fail([flight for flight in self._running.values() if flight.rank == rank], problem)

    def fail_all(self, problem: str) -> None:
        """Fail every request, waiting or running, with Unavailable; workers forget the running ones."""
        for flight in self._running.values():
            if flight.rank in self._credits:
                self._calls.abort(flight.rank, [flight.sequence_id])
        self._fail(list(self._flights.values()), problem)

    def update(self, rank: int, updates: Sequence[SequenceUpdate]) -> None:
        """News from a worker. Sequences that were aborted meanwhile are passed over."""
        now_s = self._clock()
        for update in updates:
            flight = self._running.get(update.sequence_id)
            if flight is not None and flight.rank == rank:
                self._apply(flight, update, now_s)
        self._pump()

    def _apply(self, flight: Flight, update: SequenceUpdate, now_s: float) -> None:
        if update.token_ids:
            self._count_tokens(flight, len(update.token_ids), now_s)
            flight.output.push(update.token_ids)
        if update.error:
            flight.output.fail(Unavailable(f"attention-{flight.rank}: {update.error}"))
            self._end(flight, ERROR)
        elif update.finish_reason is not None:
            flight.output.finish(_finish(flight, update.finish_reason, update.stop_token_id))
            self._metrics.e2e_latency.observe(now_s - flight.request.arrival_s)
            self._end(flight, update.finish_reason.value)

    def _count_tokens(self, flight: Flight, num_tokens: int, now_s: float) -> None:
        if flight.num_generated == 0:
            flight.first_token_s = flight.last_token_s = now_s
            self._metrics.time_to_first_token.observe(now_s - flight.request.arrival_s)
        num_gaps = num_tokens if flight.num_generated else num_tokens - 1
        for _ in range(num_gaps):
            self._metrics.inter_token_latency.observe((now_s - flight.last_token_s) / num_gaps)
        flight.num_generated += num_tokens
        flight.last_token_s = now_s
        self._metrics.generation_tokens.inc(num_tokens)

    def _pump(self) -> None:
        """Admit whom the free credits allow."""
        joining: dict[int, list[Flight]] = defaultdict(list)
        demands = (flight.demand for flight in self._waiting)
        for assignment in list(admit(demands, self._credits.values())):
            flight = self._waiting.pop(assignment.id)
            assert flight is not None, "admit answers with ids of the queue"
            self._start(flight, assignment.rank)
            joining[assignment.rank].append(flight)
        for rank, flights in joining.items():
            self._calls.admit(rank, flights)
        self._show()

    def _start(self, flight: Flight, rank: int) -> None:
        flight.rank, flight.admitted_s = rank, self._clock()
        self._credits[rank] = self._credits[rank].reserve(flight.request.max_len)
        self._running[flight.sequence_id] = flight
        self._metrics.queue_time.observe(flight.admitted_s - flight.request.arrival_s)
        self._metrics.prompt_tokens.inc(len(flight.request.prompt_token_ids))

    def _fail(self, flights: Sequence[Flight], problem: str) -> None:
        error: MoonshardError = Unavailable(problem)
        for flight in flights:
            flight.output.fail(error)
            self._end(flight, ERROR)
        self._show()

    def _end(self, flight: Flight, finish_reason: str) -> None:
        del self._flights[flight.request.id]
        if not self._flights:
            self.idle.set()
        self._waiting.pop(flight.request.id)
        self._running.pop(flight.sequence_id, None)
        if flight.rank in self._credits:
            self._credits[flight.rank] = self._credits[flight.rank].release(flight.request.max_len)
        self._metrics.ended(finish_reason)

    def _show(self) -> None:
        self._metrics.waiting.set(self.num_waiting)
        self._metrics.running.set(self.num_running)


def _finish(flight: Flight, reason: FinishReason, stop_token_id: int | None) -> Finish:
    first_s = flight.first_token_s or flight.admitted_s
    timings = Timings(
        queue_s=flight.admitted_s - flight.request.arrival_s,
        prefill_s=first_s - flight.admitted_s,
        decode_s=max(flight.last_token_s - first_s, 0.0),
    )
    return Finish(reason, stop_token_id, len(flight.request.prompt_token_ids), flight.num_generated, timings)
