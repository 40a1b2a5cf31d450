"""The cell as it is now: takes workers' messages, lets membership decide, and acts on the answer.

Runs in the event loop's thread; nothing here awaits.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from moonshard.placed import Placement
from moonshard.router.connections import Connection, Connections
from moonshard.router.engine import Engine
from moonshard.router.failover_metrics import Losses
from moonshard.router.load import LoadBook
from moonshard.router.load_wire import window_from_load
from moonshard.router.members import Outgoing, Role, Welcome, Worker, WorkerId, WorkerState
from moonshard.router.membership import Membership
from moonshard.router.news_parts import in_parts
from moonshard.router.placer import Placer
from moonshard.router.rates import RateWindow
from moonshard.router.traces import TraceBook
from moonshard.router.wire import (
    credits_from_ready,
    membership_message,
    news_from_outputs,
    vitals_from_heartbeat,
    worker_from_join,
    worker_status,
)
from moonshard.v1 import control_pb2 as pb

logger = logging.getLogger(__name__)


class _Pulse:
    """When a worker was last heard, and how fast its total grows."""

    def __init__(self, now_s: float) -> None:
        self.heard_s = now_s
        self.rate = RateWindow()


class CacheWatcher(Protocol):
    """Told what the attention workers' prefix caches hold."""

    def receive(self, rank: int, events: Iterable[pb.KvEvent]) -> None: ...

    def forget(self, rank: int) -> None: ...


class Cell:
    """changed: set whenever readiness may have changed; its waiter clears it. is_draining: see `drain`.

    recovery_s: how long requests wait for workers that were lost; 0: they fail at once.
    """

    def __init__(
        self,
        membership: Membership,
        connections: Connections,
        engine: Engine,
        load: LoadBook,
        clock: Callable[[], float],
        caches: CacheWatcher,
        recovery_s: float = 0.0,
        placer: Placer | None = None,
    ) -> None:
        self.membership = membership
        self.placer = placer
        if placer:
            placer.published = self._placed
        self.load = load
        self.changed = asyncio.Event()
        self._connections = connections
        self._engine = engine
        self._clock = clock
        self._caches = caches
        self._pulses: dict[WorkerId, _Pulse] = {}
        self._recovery_s = recovery_s
        self._patience: asyncio.TimerHandle | None = None
        self.losses, self.traces = Losses(), TraceBook(kept=0)
        self.is_draining = False
        self._watchers: list[asyncio.Event] = []
        self._gate()

    @property
    def is_ready(self) -> bool:
        return self.membership.is_ready and not self.is_draining

    def join(self, message: pb.Join, cut: Callable[[], object]) -> Connection:
        """`cut` breaks the worker's stream. Raises ConfigError when the worker does not belong here."""
        worker = worker_from_join(message)
        membership, outgoing = self.membership.join(worker)
        if self.placer:
            self.placer.joined(worker.id, message)
            membership = replace(membership, placement=self.membership.placement)
        connection = self._connections.open(worker.id, cut)
        self._pulses[worker.id] = _Pulse(self._clock())
        logger.info("%s joined", worker.describe())
        self._commit(membership, outgoing)
        return connection

    def deliver(self, worker_id: WorkerId, outputs: pb.SequenceOutputs) -> Iterator[None]:
        """What sequences said. Pauses between the parts of `in_parts`, first tokens before the others'."""
        updates, free = news_from_outputs(outputs)
        self._engine.note_batch(len(updates))
        before, last = in_parts(updates, lambda sequence_id: self._engine.has_begun(worker_id.rank, sequence_id))
        for part in before:
            self._engine.update(worker_id.rank, part)
            yield
        self._engine.update(worker_id.rank, last, free)
        if self.membership.workers[worker_id].state is WorkerState.DRAINING:
            self._ring()

    def receive(self, worker_id: WorkerId, message: pb.WorkerMessage) -> None:
        """Any message but the join and outputs. Raises ConfigError for one that breaks the protocol."""
        kind = message.WhichOneof("body")
        if kind == "heartbeat":
            self._heartbeat(worker_id, message.heartbeat)
        elif kind == "expert_load":
            self.load.add(worker_id.rank, window_from_load(message.expert_load), self._clock())
        elif kind == "suspicion":
            self._suspect(worker_id, message.suspicion)
        elif kind == "alarm":
            self._take_alarm(worker_id, message.alarm)
        elif kind == "loaded":
            self._commit(*self.membership.loaded(worker_id))
        elif kind == "ready":
            self._ready(worker_id, message.ready)
        elif kind == "placed" and self.placer:
            self.placer.placed(worker_id, message.placed)
        elif kind == "held" and self.placer:
            self.placer.held(worker_id, message.held)
        elif kind == "routing":
            self.traces.add(worker_id.rank, message.routing.steps)
        elif kind == "group_lost":
            self._group_lost(worker_id, message.group_lost)
        elif kind == "kv_events":
            self._caches.receive(worker_id.rank, message.kv_events.events)
        else:
            logger.warning("%s sent a message that is not understood here: %s", worker_id, kind)

    def lost(self, connection: Connection, problem: str) -> None:
        """The worker's stream is over. Its requests wait for it or its like, or fail where nothing recovers."""
        worker = self.membership.workers[connection.worker_id]
        self._connections.close(connection)
        del self._pulses[worker.id]
        if self.placer:
            self.placer.lost(worker.id)
        logger.log(logging.INFO if self.is_draining else logging.ERROR, "%s lost: %s", worker.describe(), problem)
        if worker.state is not WorkerState.DRAINING:
            self.losses.lost[worker.id.role] += self.membership.is_formed
        self._commit(*self.membership.lost(worker.id))
        self._fail_requests_of(worker, f"{worker.describe()} lost: {problem}")
        self._await_recovery()

    def flush_caches(self) -> int:
        """Have every attention worker forget the cached blocks that are not in use; how many were asked."""
        ids = [worker_id for worker_id in self.membership.workers if worker_id.role is Role.ATTENTION]
        for worker_id in ids:
            self._connections.send(worker_id, pb.RouterMessage(flush_cache=pb.FlushCache()))
        return len(ids)

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self.is_draining = True
        self._gate()

    def serve_with(self, worker_id: WorkerId, serves: bool) -> None:
        """Take a worker out of service, or back into it."""
        logger.info("%s: %s", worker_id, "back in service" if serves else "out of service")
        self._commit(*self.membership.in_service(worker_id, serves))

    @contextmanager
    def watching(self) -> Iterator[asyncio.Event]:
        """Set whenever the membership changed, or what a draining worker runs; its waiter clears it."""
        watcher = asyncio.Event()
        self._watchers.append(watcher)
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)

    def statuses(self) -> Iterable[pb.WorkerStatus]:
        """Of the joined workers, shards first."""
        now_s = self._clock()
        workers = self.membership.workers.values()
        for worker in sorted(workers, key=lambda w: (w.id.role is Role.ATTENTION, w.id.rank)):
            pulse = self._pulses[worker.id]
            yield worker_status(worker, now_s - pulse.heard_s, pulse.rate.per_second(now_s))

    def generated_per_second(self) -> float:
        """Tokens, by all attention workers."""
        now_s = self._clock()
        pulses = (pulse for worker_id, pulse in self._pulses.items() if worker_id.role is Role.ATTENTION)
        return sum(pulse.rate.per_second(now_s) for pulse in pulses)

    def _heartbeat(self, worker_id: WorkerId, beat: pb.Heartbeat) -> None:
        self.membership = self.membership.heartbeat(worker_id, vitals_from_heartbeat(beat))
        pulse = self._pulses[worker_id]
        pulse.heard_s = self._clock()
        pulse.rate.add(pulse.heard_s, beat.tokens)
        if not self.membership.is_ready:
            self._gate()  # the refusal tells the loading progress

    def _ready(self, worker_id: WorkerId, message: pb.Ready) -> None:
        credits = credits_from_ready(message) if worker_id.role is Role.ATTENTION else None
        self.losses.returned[worker_id.role] += self.membership.is_formed
        membership, outgoing = self.membership.ready(worker_id, message.data_address, credits)
        logger.info("%s ready", membership.workers[worker_id].describe())
        self._commit(membership, outgoing)
        if credits:
            self._engine.add_worker(worker_id.rank, credits)

    def _fail_requests_of(self, worker: Worker, problem: str) -> None:
        if worker.id.role is Role.ATTENTION:
            self._caches.forget(worker.id.rank)
        if worker.id.role is Role.ATTENTION and self._recovers:
            num_flights = self._engine.readmit_worker(worker.id.rank, problem)
            self.losses.num_readmitted += num_flights
            logger.warning("%d sequences of %s go on elsewhere, or when it is back", num_flights, worker.id)
        elif worker.id.role is Role.ATTENTION:
            self._engine.remove_worker(worker.id.rank, problem)
        # Every request needs every shard, and some attention worker.
        if not self._recovers and (worker.id.role is Role.EXPERT or not self._engine.has_workers):
            self._engine.fail_all(problem)

    @property
    def _recovers(self) -> bool:
        return self._recovery_s > 0 and self.membership.is_formed and not self.is_draining

    @property
    def _is_waiting(self) -> bool:
        return self._patience is not None and self._patience.when() > asyncio.get_running_loop().time()

    def _await_recovery(self) -> None:
        if self._recovers and not self.membership.is_ready and self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(self._recovery_s, self._lose_patience)
            self._gate()

    def _lose_patience(self) -> None:
        problem = f"{self.membership.describe_missing()}: not back within {self._recovery_s:g} s"
        logger.error("%s", problem)
        self._engine.fail_all(problem)
        self._gate()

    def _suspect(self, accuser: WorkerId, suspicion: pb.Suspicion) -> None:
        """A copy whose answers are wrong is sent away: its launcher starts a sound one. A slow one may stay."""
        rank = suspicion.shard + self.membership.topology.num_shards * suspicion.replica
        suspect = WorkerId(Role.EXPERT, rank)
        logger.warning("%s suspects %s: %s", accuser, suspect, suspicion.reason)
        if suspicion.is_wrong:
            self._connections.send(suspect, pb.RouterMessage(shutdown=pb.Shutdown(reason=suspicion.reason)))

    def _placed(self, placement: Placement) -> None:
        """Experts are elsewhere now, which coverage must know."""
        self._commit(replace(self.membership, placement=placement), ())

    def _take_alarm(self, worker_id: WorkerId, alarm: pb.Alarm) -> None:
        """Of two copies that disagree both have to verify their weights: who finds damage ends."""
        is_damage = alarm.kind == pb.Alarm.KIND_WEIGHTS
        shards = sorted({self.membership.topology.shard_of(rank) for rank in alarm.ranks})
        where = f"shard {', '.join(map(str, shards))}, layer {alarm.layer}, expert {', '.join(map(str, alarm.experts))}"
        what = "damaged weights" if is_damage else f"expert workers {', '.join(map(str, alarm.ranks))} disagree"
        logger.error("%s, %s: %s", worker_id, where, what)
        self.losses.num_damaged += is_damage
        for rank in () if is_damage else alarm.ranks:
            self._connections.send(WorkerId(Role.EXPERT, rank), pb.RouterMessage(verify=pb.Verify()))

    def _group_lost(self, worker_id: WorkerId, message: pb.GroupLost) -> None:
        is_news = message.epoch == self.membership.group_epoch  # the other ranks say so as well
        level = logging.WARNING if is_news else logging.DEBUG
        logger.log(level, "%s lost the group of epoch %d: %s", worker_id, message.epoch, message.reason)
        self._commit(*self.membership.group_lost(message.epoch))

    def _commit(self, membership: Membership, outgoing: Iterable[Outgoing]) -> None:
        self.membership = membership
        if self.placer:
            self.placer.workers = membership.workers
        for message in outgoing:
            placement = self.placer.welcome() if self.placer and isinstance(message.message, Welcome) else None
            self._connections.send(message.to, membership_message(message.message, placement))
        self._gate()

    def _gate(self) -> None:
        if self.is_draining:
            self._engine.refusal = "draining: this router is about to end"
        elif self.membership.is_ready:
            self._engine.refusal = None
            if self._patience:
                self._patience.cancel()
                self._patience = None
        elif self._is_waiting:
            self._engine.refusal = None  # the queue's limit holds
        else:
            self._engine.refusal = f"not ready: {self.membership.describe_missing()}"
        self.changed.set()
        self._ring()

    def _ring(self) -> None:
        for watcher in self._watchers:
            watcher.set()
