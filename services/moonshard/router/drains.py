"""Workers that leave service on purpose. Runs in the event loop.

A shard is out of service as soon as the attention workers are told so: their handles own the rows that it still has,
and ask another copy. An attention worker gets nothing new; what it runs ends there, or other workers take it over.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from moonshard.errors import FailedPrecondition, RequestError
from moonshard.router.cell import Cell
from moonshard.router.engine import Engine
from moonshard.router.leaving import why_it_stays
from moonshard.router.members import Role, WorkerId, WorkerState


@dataclass(frozen=True, slots=True)
class Progress:
    """num_sequences: still running there. waits_for: in words, what keeps it from leaving; empty once it has begun."""

    is_drained: bool
    num_sequences: int
    waits_for: str = ""


class Drains:
    def __init__(self, cell: Cell, engine: Engine) -> None:
        self._cell = cell
        self._engine = engine
        self._hand_overs: dict[WorkerId, asyncio.TimerHandle] = {}

    async def drain(self, worker_id: WorkerId, finish_s: float, waits: bool) -> AsyncIterator[Progress]:
        """Progress at every change until the worker's process may end. It goes on when nobody listens any more.

        finish_s: how long sequences may go on there before they are handed over. waits: for the cell to be able to
        spare the worker. Raises RequestError for a rank that the cell does not have, FailedPrecondition when the worker
        cannot be spared, is not there, or was put back into service meanwhile.
        """
        self._check_rank(worker_id)
        with self._cell.watching() as changed:
            while reason := self._why_not(worker_id):
                if not waits:
                    raise FailedPrecondition(reason)
                yield Progress(False, self._num_sequences(worker_id), reason)
                await changed.wait()
                changed.clear()
            pid = self._cell.membership.workers[worker_id].pid
            self._begin(worker_id, finish_s)
            while not self._is_drained(worker_id, pid):
                yield Progress(False, self._num_sequences(worker_id))
                await changed.wait()
                changed.clear()
        yield Progress(True, 0)

    def undo(self, worker_id: WorkerId) -> None:
        """Put the worker back into service. Raises RequestError, or FailedPrecondition when it is not drained."""
        self._check_rank(worker_id)
        worker = self._cell.membership.workers.get(worker_id)
        if worker is None or worker.state is not WorkerState.DRAINING:
            raise FailedPrecondition(f"{worker_id} is not drained")
        if worker_id.role is Role.ATTENTION:
            timer = self._hand_overs.pop(worker_id, None)
            if timer is None and not self._engine.is_quiet(worker_id.rank):
                raise FailedPrecondition(f"{worker_id} is handing over its sequences; try again")
            if timer:
                timer.cancel()
        self._cell.serve_with(worker_id, True)
        if worker_id.role is Role.ATTENTION:
            self._engine.reopen_worker(worker_id.rank)

    def _check_rank(self, worker_id: WorkerId) -> None:
        topology = self._cell.membership.topology
        limit = topology.num_expert_workers if worker_id.role is Role.EXPERT else topology.num_attention
        if not 0 <= worker_id.rank < limit:
            raise RequestError(
                "rank", f"{worker_id.role.value} ranks of this cell are 0..{limit - 1}, got {worker_id.rank}"
            )

    def _why_not(self, worker_id: WorkerId) -> str:
        membership = self._cell.membership
        return why_it_stays(membership, worker_id) if worker_id in membership.workers else f"{worker_id} is not there"

    def _begin(self, worker_id: WorkerId, finish_s: float) -> None:
        """Also for one that is draining already: the later word about finish_s counts."""
        if self._cell.membership.workers[worker_id].state is not WorkerState.DRAINING:
            self._cell.serve_with(worker_id, False)
        if worker_id.role is not Role.ATTENTION:
            return
        self._engine.close_worker(worker_id.rank)
        if timer := self._hand_overs.pop(worker_id, None):
            timer.cancel()
        if finish_s > 0:
            later = asyncio.get_running_loop().call_later(finish_s, self._hand_over, worker_id)
            self._hand_overs[worker_id] = later
        else:
            self._hand_over(worker_id)

    def _hand_over(self, worker_id: WorkerId) -> None:
        self._hand_overs.pop(worker_id, None)
        worker = self._cell.membership.workers.get(worker_id)
        if worker is None or worker.state is not WorkerState.DRAINING:
            return  # it ended, and its successor serves
        self._cell.losses.num_handed_over += self._engine.hand_over(worker_id.rank)

    def _num_sequences(self, worker_id: WorkerId) -> int:
        return self._engine.num_running_at(worker_id.rank) if worker_id.role is Role.ATTENTION else 0

    def _is_drained(self, worker_id: WorkerId, pid: int) -> bool:
        worker = self._cell.membership.workers.get(worker_id)
        if worker is None or worker.pid != pid:
            return True  # it has ended meanwhile
        if worker.state is not WorkerState.DRAINING:
            raise FailedPrecondition(f"{worker_id} was put back into service")
        return worker_id.role is Role.EXPERT or self._engine.is_quiet(worker_id.rank)
