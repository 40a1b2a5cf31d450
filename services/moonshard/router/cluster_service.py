"""moonshard.v1.Cluster: what operators and the launcher ask."""

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import psutil

from moonshard.config import CellConfig
from moonshard.errors import RequestError
from moonshard.router.cell import Cell
from moonshard.router.engine import Engine
from moonshard.router.load_wire import load_response
from moonshard.router.operator_key import OperatorKey
from moonshard.v1 import control_pb2 as pb
from moonshard.v1.control_pb2_grpc import ClusterServicer

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
    ) -> None:
        self.metrics_address = ""
        self._config = config
        self._model_name = model_name
        self._cell = cell
        self._engine = engine
        self._operator = operator
        self._clock = clock
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
        matrix = book.matrix(request.window_s, self._clock())
        return load_response(matrix, model_name=self._model_name, history_s=book.history_s, taken_at_s=time.time())

    def _own_status(self) -> pb.WorkerStatus:
        return pb.WorkerStatus(
            role=pb.ROLE_ROUTER,
            pid=os.getpid(),
            host=socket.gethostname(),
            state=pb.WORKER_STATE_READY if not self._cell.is_draining else pb.WORKER_STATE_DRAINING,
            metrics_address=self.metrics_address,
            resident_bytes=self._process.memory_info().rss,
        )
