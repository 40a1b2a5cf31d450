"""moonshard.v1.Cluster: what operators and the launcher ask."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil

from moonshard.config import CellConfig
from moonshard.errors import FailedPrecondition, RequestError
from moonshard.router.cell import Cell
from moonshard.router.drains import Drains, Progress
from moonshard.router.engine import Engine
from moonshard.router.load_wire import load_response
from moonshard.router.members import WorkerId
from moonshard.router.operator_key import OperatorKey
from moonshard.router.placement_wire import placement_response, progress_message
from moonshard.router.placer import Placer
from moonshard.router.traces import trace_response
from moonshard.router.wire import ROLES
from moonshard.rpc.placements import layers_from_proto
from moonshard.v1 import control_pb2 as pb
from moonshard.v1.control_pb2_grpc import ClusterServicer

FINISH_S_MAX = 86_400.0
PROGRESS_S = 1.0  # how often a router that leaves says how far it is

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Cluster"].full_name


class ClusterService(ClusterServicer):
    """metrics_address: the router's own, set once it is known."""

    def __init__(
        self,
        config: CellConfig,
        model_name: str,
        cell: Cell,
        engine: Engine,
        operator: OperatorKey,
        clock: Callable[[], float],
        leave: Callable[[], None],
        placer: Placer,
    ) -> None:
        """leave: have the router make way; returns at once."""
        self.metrics_address = ""
        self._config = config
        self._model_name = model_name
        self._cell = cell
        self._engine = engine
        self._operator = operator
        self._clock = clock
        self._leave = leave
        self._drains = Drains(cell, engine)
        self._placer = placer
        self._process = psutil.Process()

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        membership = self._cell.membership
        covered = membership.coverage
        return pb.GetStatusResponse(
            model_name=self._model_name,
            epoch=membership.epoch,
            ready=self._cell.is_ready,
            workers=[self._own_status(), *self._cell.statuses()],
            coverage=pb.Coverage(
                num_experts=covered.num_experts,
                num_covered=covered.num_covered,
                min_copies=covered.min_copies,
                max_copies=covered.max_copies,
            ),
            num_running=self._engine.num_running,
            num_waiting=self._engine.num_waiting,
            tokens_per_second=self._cell.generated_per_second(),
            num_shards=self._config.num_shards,
            num_attention=self._config.num_attention,
            num_replicas=self._config.num_replicas,
            transport=self._config.transport,
            fault_hooks_s=self._config.experts.fault_hooks_s,
        )

    async def GetLoad(self, request: pb.GetLoadRequest, context: Any) -> pb.GetLoadResponse:
        self._operator.check(context.invocation_metadata())
        book = self._cell.load
        # Written so that NaN is refused too.
        if not 0 <= request.window_s <= book.history_s:
            raise RequestError("window_s", f"must be in 0..{book.history_s:g}, got {request.window_s:g}")
        topology = self._cell.membership.topology
        matrix = book.matrix(request.window_s, self._clock())
        if self._placer.movable:  # they count what they ever held; GetPlacement tells what they hold
            matrix = matrix.with_blocks(lambda rank: topology.experts_of(topology.shard_of(rank)))
        return load_response(matrix, model_name=self._model_name, history_s=book.history_s, taken_at_s=time.time())

    async def GetPlacement(self, request: pb.GetPlacementRequest, context: Any) -> pb.GetPlacementResponse:
        self._operator.check(context.invocation_metadata())
        return placement_response(self._placer)

    async def ApplyPlacement(
        self, request: pb.ApplyPlacementRequest, context: Any
    ) -> AsyncIterator[pb.PlacementProgress]:
        self._operator.check(context.invocation_metadata())
        if not self._cell.membership.is_formed:
            raise FailedPrecondition(f"the cell has not formed yet: {self._cell.membership.describe_missing()}")
        started_s, layers = self._clock(), layers_from_proto(request.layers)
        async with contextlib.aclosing(self._placer.apply(layers, request.generation)) as progress:
            async for it in progress:
                yield progress_message(self._placer, it, self._clock() - started_s)

    async def PinExpert(self, request: pb.PinExpertRequest, context: Any) -> pb.GetPlacementResponse:
        self._operator.check(context.invocation_metadata())
        self._placer.pin(request.pin.layer, request.pin.expert, tuple(request.pin.shards))
        return placement_response(self._placer)

    async def GetTrace(self, request: pb.GetTraceRequest, context: Any) -> pb.GetTraceResponse:
        self._operator.check(context.invocation_metadata())
        response = trace_response(self._cell.traces, request.request_id)
        if request.request_id and not response.sequences:
            raise RequestError("request_id", f"no trace of {request.request_id[:80]!r} is kept")
        return response

    async def Drain(self, request: pb.DrainRequest, context: Any) -> AsyncIterator[pb.DrainProgress]:
        if request.role == pb.ROLE_ROUTER:
            async for progress in self._make_way(request):
                yield _progress(progress)
            return
        if request.role not in ROLES:
            raise RequestError("role", f"must be router, attention or expert, got {request.role}")
        worker_id = WorkerId(ROLES[request.role], request.rank)
        if request.undo:
            self._drains.undo(worker_id)
            return
        finish_s = request.finish_s if request.HasField("finish_s") else self._config.timeouts.drain_s
        # Written so that NaN is refused too.
        if not 0 <= finish_s <= FINISH_S_MAX:
            raise RequestError("finish_s", f"must be in 0..{FINISH_S_MAX:g}, got {finish_s:g}")
        async for progress in self._drains.drain(worker_id, finish_s, request.waits):
            yield _progress(progress)

    async def _make_way(self, request: pb.DrainRequest) -> AsyncIterator[Progress]:
        if request.undo:
            raise RequestError("undo", "a router that leaves cannot be held back")
        self._leave()
        deadline = self._clock() + self._config.timeouts.drain_s
        while not (idle := self._engine.idle.is_set()) and self._clock() < deadline:
            yield Progress(False, self._engine.num_running + self._engine.num_waiting)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._engine.idle.wait(), PROGRESS_S)
        yield Progress(idle, self._engine.num_running + self._engine.num_waiting)

    def _own_status(self) -> pb.WorkerStatus:
        return pb.WorkerStatus(
            role=pb.ROLE_ROUTER,
            pid=os.getpid(),
            host=socket.gethostname(),
            state=pb.WORKER_STATE_READY if not self._cell.is_draining else pb.WORKER_STATE_DRAINING,
            metrics_address=self.metrics_address,
            resident_bytes=self._process.memory_info().rss,
        )


def _progress(progress: Progress) -> pb.DrainProgress:
    return pb.DrainProgress(
        is_drained=progress.is_drained, num_sequences=progress.num_sequences, waits_for=progress.waits_for
    )
