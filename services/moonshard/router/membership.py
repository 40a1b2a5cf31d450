"""Who belongs to the cell: events in, (new state, messages to send) out. Pure: no clock, no stream.

The epoch names the membership that is being formed or is in force. Once it was whole, every loss and every return
starts the next one, which the attention workers are told of; who holds an older one ignores it.

    worker           router                                attention workers
    join      ──►    Welcome(epoch)
    ready     ──►    when every expert is covered:   ──►   Members(epoch, live copies of the shards)
                                                     ◄──   ready(credits), once connected to every shard
    lost      ──►    epoch + 1                       ──►   Members, to those that are ready
    (drain)          epoch + 1                       ──►   Members, without a shard that lives but is out of service
    ready     ──►    epoch + 1                       ──►   Members

On all_to_all every epoch has a group of all shards and of the attention workers that have loaded. Every rank hears of
it, and of the next one when a rank is lost, comes back, or says that an exchange failed.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from moonshard.errors import ConfigError
from moonshard.placed import Placement, coverage_of
from moonshard.router.members import (
    BEFORE_READY,
    Credits,
    Members,
    Outgoing,
    Role,
    ShardCopy,
    Vitals,
    Welcome,
    Worker,
    WorkerId,
    WorkerState,
)
from moonshard.topology import Coverage, Topology, coverage

MAX_NAMED = 4


@dataclass(frozen=True)
class Membership:
    """The committed state. needs_addresses: shards must tell a data address, as they do on links, else there is a group
    (all_to_all); group_epoch is that of the last one that was told.

    min_attention: attention workers that the first time takes, any of them; 0 is all. is_formed: that time has been.
    placement: where experts are; None is contiguous blocks.
    """

    topology: Topology
    checkpoint_id: str
    needs_addresses: bool = True
    epoch: int = 1
    workers: Mapping[WorkerId, Worker] = field(default_factory=dict)
    is_formed: bool = False
    may_degrade: bool = False
    min_attention: int = 0
    placement: Placement | None = None
    group_epoch: int = 0

    def join(self, worker: Worker) -> tuple["Membership", list[Outgoing]]:
        """Raises ConfigError when the worker does not belong here."""
        self._check_joining(worker)
        state = replace(self._with(worker), epoch=max(self.epoch, worker.epoch + 1 if worker.epoch else 0))
        messages = [Outgoing(worker.id, Welcome(state.epoch))]
        if self.needs_addresses and worker.id.role is Role.ATTENTION and state.coverage.complete:
            messages.append(Outgoing(worker.id, state._members()))
        return state, messages

    def ready(
        self, worker_id: WorkerId, data_address: str, credits: Credits | None
    ) -> tuple["Membership", list[Outgoing]]:
        """Raises ConfigError when the message lacks what its role must tell, or comes twice."""
        worker = self.workers[worker_id]
        self._check_ready(worker, data_address, credits)
        state = self._with(replace(worker, state=WorkerState.READY, data_address=data_address, credits=credits))
        state = replace(state, is_formed=self.is_formed or not any(True for _ in state._missing()))
        if worker_id.role is Role.ATTENTION:
            return state, []
        if not self.needs_addresses:
            return state._regrouped()
        if self.is_formed:
            state = replace(state, epoch=self.epoch + 1)
        return state, state._published()

    def loaded(self, worker_id: WorkerId) -> tuple["Membership", list[Outgoing]]:
        """An attention worker waits for the shards. Raises ConfigError for another, or when it was loaded before."""
        worker = self.workers[worker_id]
        if worker_id.role is not Role.ATTENTION or worker.state is not WorkerState.LOADING:
            raise ConfigError("loaded", f"{worker_id} is {worker.state.value}, expected a loading attention worker")
        state = self._with(replace(worker, state=WorkerState.LOADED))
        return (state, []) if self.needs_addresses else state._regrouped()

    def group_lost(self, epoch: int) -> tuple["Membership", list[Outgoing]]:
        """The next group, unless there is one already: every rank of a broken group may say so."""
        return self._regrouped() if epoch == self.group_epoch else (self, [])

    def heartbeat(self, worker_id: WorkerId, vitals: Vitals) -> "Membership":
        return self._with(replace(self.workers[worker_id], vitals=vitals))

    def lost(self, worker_id: WorkerId) -> tuple["Membership", list[Outgoing]]:
        """Without the worker, in the next epoch."""
        rest = {key: worker for key, worker in self.workers.items() if key != worker_id}
        if not self.needs_addresses:
            state, was_in_group = replace(self, workers=rest), self.workers[worker_id].state is not WorkerState.LOADING
            return state._regrouped() if was_in_group and self.group_epoch else (state, [])
        state = replace(self, workers=rest, epoch=self.epoch + 1)
        was_serving = self.is_formed and worker_id.role is Role.EXPERT
        return state, state._published() if was_serving else []

    def in_service(self, worker_id: WorkerId, serves: bool) -> tuple["Membership", list[Outgoing]]:
        """With a worker that was ready out of service though it lives, or back in it; in the next epoch."""
        worker = self.workers[worker_id]
        assert worker.state is not WorkerState.LOADING, f"{worker_id} was never in service"
        state = self._with(replace(worker, state=WorkerState.READY if serves else WorkerState.DRAINING))
        state = replace(state, epoch=self.epoch + 1)
        return state, state._published() if worker_id.role is Role.EXPERT else []

    @property
    def coverage(self) -> Coverage:
        """Of the experts by the shards that are ready, redundant copies included."""
        ready = [shard for shard in self._of(Role.EXPERT) if shard.state is WorkerState.READY]
        if self.placement is None:
            return coverage(self.topology.num_experts, (shard.experts for shard in ready))
        live = Counter(self.topology.shard_of(shard.id.rank) for shard in ready)
        return coverage_of(self.placement, tuple(live[shard] for shard in range(self.topology.num_shards)))

    def serves(self, role: Role) -> bool:
        """Whether what this role does can be done: every expert covered, or an attention worker ready."""
        if role is Role.EXPERT:
            return self.coverage.complete
        return any(worker.state is WorkerState.READY for worker in self._of(Role.ATTENTION))

    @property
    def is_ready(self) -> bool:
        """The first time when all expected are; from then on while every expert and an attention worker are there."""
        return self.is_formed and self.serves(Role.ATTENTION) and (self.covers_enough or self.serves(Role.EXPERT))

    @property
    def covers_enough(self) -> bool:
        """Whether the cell may go on with the experts that it has."""
        return self.may_degrade and 2 * self.coverage.num_covered >= self.coverage.num_experts

    @property
    def kv_capacity(self) -> int | None:
        """Tokens that the largest ready attention worker holds; None before any is ready."""
        return max((w.credits.kv_capacity for w in self._of(Role.ATTENTION) if w.credits), default=None)

    @property
    def kv_tokens(self) -> int:
        """Tokens that all ready attention workers hold together."""
        return sum(w.credits.kv_capacity for w in self._of(Role.ATTENTION) if w.credits)

    def describe_missing(self) -> str:
        """What the cell waits for, in words; empty when it is ready."""
        missing = list(self._missing())
        more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        return ", ".join(missing[:MAX_NAMED]) + more

    def _missing(self) -> Iterator[str]:
        for worker_id in self._expected():
            worker = self.workers.get(worker_id)
            if worker is None:
                yield f"{worker_id} has not joined"
            elif worker.state is WorkerState.LOADING:
                yield f"{worker_id} is loading{_progress(worker.vitals)}"
            elif worker.state is WorkerState.DRAINING:
                yield f"{worker_id} is drained"
            elif worker.state is WorkerState.LOADED:
                yield f"{worker_id} waits for the shards"

    def _expected(self) -> Iterator[WorkerId]:
        """All shards, and as many of the attention workers that are not ready as are still waited for."""
        yield from (WorkerId(Role.EXPERT, rank) for rank in range(self.topology.num_expert_workers))
        ranks = range(self.topology.num_attention)
        ready = {w.id.rank for w in self._of(Role.ATTENTION) if w.state is WorkerState.READY}
        wanted = (self.min_attention or len(ranks)) - len(ready)
        absent = [rank for rank in ranks if rank not in ready]
        yield from (WorkerId(Role.ATTENTION, rank) for rank in absent[: max(0, wanted)])

    def _of(self, role: Role) -> list[Worker]:
        return sorted((w for w in self.workers.values() if w.id.role is role), key=lambda w: w.id.rank)

    def _with(self, worker: Worker) -> "Membership":
        return replace(self, workers={**self.workers, worker.id: worker})

    def _members(self) -> Members:
        ready = [worker for worker in self._of(Role.EXPERT) if worker.state is WorkerState.READY]
        return Members(self.epoch, tuple(self._copy(worker) for worker in ready), self._attention_of_group())

    def _copy(self, worker: Worker) -> ShardCopy:
        rank = worker.id.rank
        return ShardCopy(self.topology.shard_of(rank), self.topology.replica_of(rank), worker.data_address)

    def _attention_of_group(self) -> tuple[int, ...]:
        """By rank; none while the shards do not cover every expert."""
        if self.needs_addresses or not self.coverage.complete:
            return ()
        return tuple(worker.id.rank for worker in self._of(Role.ATTENTION) if worker.state is not WorkerState.LOADING)

    def _regrouped(self) -> tuple["Membership", list[Outgoing]]:
        """The next epoch, told to every rank that can be in a group. The first group waits for everybody."""
        present = [worker for worker in self.workers.values() if worker.state is not WorkerState.LOADING]
        num_attention = sum(worker.id.role is Role.ATTENTION for worker in present)
        is_everybody = self.coverage.complete and num_attention >= (self.min_attention or self.topology.num_attention)
        if not (self.group_epoch or is_everybody):
            return self, []
        epoch = self.epoch + (1 if self.group_epoch else 0)
        state = replace(self, epoch=epoch, group_epoch=epoch)
        return state, [Outgoing(worker.id, state._members()) for worker in present]

    def _published(self) -> list[Outgoing]:
        """Members to the attention workers; those that have not met the shards yet wait until every expert is there."""
        complete = self.coverage.complete
        told = [w for w in self._of(Role.ATTENTION) if complete or (self.is_formed and w.state not in BEFORE_READY)]
        return [Outgoing(worker.id, self._members()) for worker in told]

    def _check_joining(self, worker: Worker) -> None:
        role, rank = worker.id.role, worker.id.rank
        limit = self.topology.num_expert_workers if role is Role.EXPERT else self.topology.num_attention
        if not 0 <= rank < limit:
            raise ConfigError("rank", f"{role.value} ranks of this cell are 0..{limit - 1}, got {rank}")
        if holder := self.workers.get(worker.id):
            raise ConfigError("rank", f"{holder.describe()} holds this rank already, pid {worker.pid} asks for it")
        if worker.checkpoint_id != self.checkpoint_id:
            raise ConfigError(
                "checkpoint_id", f"the cell serves {self.checkpoint_id!r}, {worker.id} has {worker.checkpoint_id!r}"
            )
        expected = self.topology.experts_of(self.topology.shard_of(rank)) if role is Role.EXPERT else range(0)
        if worker.experts != expected:
            raise ConfigError("experts", f"{worker.id} must hold {_span(expected)}, got {_span(worker.experts)}")

    def _check_ready(self, worker: Worker, data_address: str, credits: Credits | None) -> None:
        if worker.state not in BEFORE_READY:
            raise ConfigError("ready", f"{worker.id} is ready already")
        if worker.id.role is Role.EXPERT and self.needs_addresses and not data_address:
            raise ConfigError("data_address", f"{worker.id} must tell where its links listen, got none")
        if worker.id.role is Role.ATTENTION:
            _check_credits(worker.id, credits)


def _check_credits(worker_id: WorkerId, credits: Credits | None) -> None:
    if credits is None or min(credits.block_size, credits.num_blocks, credits.max_num_seqs) < 1:
        raise ConfigError("credits", f"{worker_id} must announce at least one block and one slot, got {credits}")


def _span(experts: range) -> str:
    return f"experts [{experts.start}, {experts.stop})" if experts else "no experts"


def _progress(vitals: Vitals) -> str:
    return f" ({100 * vitals.loaded_bytes // vitals.total_bytes} %)" if vitals.total_bytes else ""
