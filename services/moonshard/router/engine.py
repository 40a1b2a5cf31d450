"""The requests' way through the cell: queue, admission to a worker's batch, tokens back, end.

Every change happens in the event loop's thread and none of these methods awaits, so they need no lock. Knows nothing of
gRPC; `WorkerCalls` carries its decisions out, `membership` decides elsewhere who the workers are.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from moonshard.errors import MoonshardError, Unavailable
from moonshard.router.admission import FreeCredits, admit
from moonshard.router.flight import Flight, SequenceUpdate
from moonshard.router.membership import Credits
from moonshard.router.metrics import ABORT, ERROR, RouterMetrics
from moonshard.router.queue import WaitingQueue
from moonshard.sampling import FinishReason


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
        # By sequence id.
        self._flights: dict[str, Flight] = {}
        self._running: dict[str, Flight] = {}
        self._waiting: WaitingQueue[Flight] = WaitingQueue(max_queue)
        self._credits: dict[int, FreeCredits] = {}
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

    def submit(self, flights: Sequence[Flight]) -> None:
        """Queue the sequences of one request, all or none. Raises Unavailable or Overloaded."""
        self.check_open()
        self._waiting.check_room(len(flights))
        for flight in flights:
            self._waiting.push(flight.sequence_id, flight)
            self._flights[flight.sequence_id] = flight
        self.idle.clear()
        self._pump()

    def abandon(self, flights: Iterable[Flight]) -> None:
        """The caller left; those that have ended already are passed over.

        Their blocks count as free at once: a worker handles this Abort before any later Admit of the same stream.
        """
        for flight in flights:
            if flight.sequence_id in self._flights:
                self._abort(flight)
                self._end(flight, ABORT)
        self._pump()

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
            self._abort(flight)
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
            self._take_tokens(flight, update, now_s)
        if flight.output.stop_text is not None:
            if update.finish_reason is None and not update.error:
                self._abort(flight)
            self._finish(flight, FinishReason.STOP, None, now_s)
        elif update.error:
            flight.answer.fail(Unavailable(f"attention-{flight.rank}: {update.error}"))
            self._end(flight, ERROR)
        elif update.finish_reason is not None:
            self._finish(flight, update.finish_reason, update.stop_token_id, now_s)
        flight.answer.touch(flight.choice)

    def _take_tokens(self, flight: Flight, update: SequenceUpdate, now_s: float) -> None:
        if flight.num_generated == 0:
            flight.num_cached_tokens = update.num_cached_tokens
        num_taken = flight.output.push(update.token_ids, update.logprobs, update.prompt_logprobs, update.stop_token_id)
        self._count_tokens(flight, num_taken, now_s)

    def _finish(self, flight: Flight, reason: FinishReason, stop_token_id: int | None, now_s: float) -> None:
        flight.output.finish(flight.finish(reason, stop_token_id))
        self._metrics.e2e_latency.observe(now_s - flight.request.arrival_s)
        self._end(flight, reason.value)

    def _abort(self, flight: Flight) -> None:
        """Tell the worker that runs it, if one does."""
        if flight.rank in self._credits:
            self._calls.abort(flight.rank, [flight.sequence_id])

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
            flight.answer.fail(error)
            self._end(flight, ERROR)
        self._show()

    def _end(self, flight: Flight, finish_reason: str) -> None:
        del self._flights[flight.sequence_id]
        if not self._flights:
            self.idle.set()
        self._waiting.pop(flight.sequence_id)
        self._running.pop(flight.sequence_id, None)
        if flight.rank in self._credits:
            self._credits[flight.rank] = self._credits[flight.rank].release(flight.request.max_len)
        self._metrics.ended(finish_reason)

    def _show(self) -> None:
        self._metrics.waiting.set(self.num_waiting)
        self._metrics.running.set(self.num_running)
