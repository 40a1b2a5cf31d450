"""The router put together: builds the parts, follows readiness, drains and ends in order."""

import asyncio
import contextlib
import logging
import time
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry
from smg_grpc_proto.generated.vllm_engine_pb2_grpc import add_VllmEngineServicer_to_server

from moonshard.config import CellConfig
from moonshard.grammar import GrammarEngine
from moonshard.health import Health
from moonshard.metrics import RunningMetrics, serve_metrics
from moonshard.placed import Placement
from moonshard.router import cluster_service, inference_service, workers_service
from moonshard.router.cell import Cell
from moonshard.router.chat.tool_choice import ToolBinder
from moonshard.router.chat.turn import Turns
from moonshard.router.connections import Connections
from moonshard.router.constraints import Grammars
from moonshard.router.engine import Engine
from moonshard.router.failover_metrics import register_failover_metrics
from moonshard.router.frontdoor import FrontDoor
from moonshard.router.gateway import service as gateway_service
from moonshard.router.gateway.kv_events import KvEvents
from moonshard.router.gateway.loads import LoadMeter
from moonshard.router.guard import Guard
from moonshard.router.load import LoadBook
from moonshard.router.load_metrics import register_load_metrics
from moonshard.router.members import Role
from moonshard.router.membership import Membership
from moonshard.router.metrics import RouterMetrics
from moonshard.router.placement_metrics import register_placement_metrics
from moonshard.router.placer import MoveLimits, Placer
from moonshard.router.requests import Limits
from moonshard.router.run_file import reachable, write_run_file
from moonshard.router.served_model import ServedModel
from moonshard.router.spans import Spans
from moonshard.router.traces import TraceBook
from moonshard.rpc.server import WHOLE_SERVER, RpcServer
from moonshard.rpc.tls import server_tls
from moonshard.topology import Topology
from moonshard.v1.control_pb2_grpc import add_ClusterServicer_to_server, add_WorkersServicer_to_server
from moonshard.v1.inference_pb2_grpc import add_InferenceServicer_to_server

logger = logging.getLogger(__name__)

BEAT_S = 1.0
GOODBYE_S = 3.0  # for workers to leave once they are told to
CALLS_END_S = 1.0  # for answers on their way when the server stops

GATEWAYS = gateway_service.SERVICE_NAME
INFERENCE, WORKERS, CLUSTER = (s.SERVICE_NAME for s in (inference_service, workers_service, cluster_service))


class Router:
    """One cell's router. `start` binds, `drain` lets running requests end, `close` ends everything.

    asked_to_leave: set by an operator's Drain; `leave` is then in place of `drain`.
    """

    def __init__(self, config: CellConfig, model: ServedModel, registry: CollectorRegistry) -> None:
        self.address = ""
        self.asked_to_leave = asyncio.Event()
        self._config = config
        self._registry = registry
        topology = Topology(model.num_experts, config.num_shards, config.num_attention, config.num_replicas)
        membership = Membership(
            topology,
            model.checkpoint_id,
            needs_addresses=config.transport == "links",
            min_attention=config.min_attention,
            may_degrade=config.transport == "links" and config.timeouts.degraded_after_s > 0,
        )
        metrics = RouterMetrics(registry, model.name)
        self._connections = Connections()
        guard = Guard(config.router, metrics.rejected)
        self.engine = Engine(config.router.max_queue, self._connections, metrics, time.monotonic, guard.weights)
        metrics.watch_tenants(tuple(guard.weights), self.engine.num_waiting_of)
        load = LoadBook(model.num_experts, config.metrics.load_history_s)
        kv_events = KvEvents(config.attention.block_size)
        self.placer = Placer(
            topology,
            Placement.blocks(model.num_experts, config.num_shards, model.moe_layers),
            MoveLimits.of(config, topology),
            self._connections.send,
        )
        self.cell = Cell(
            membership,
            self._connections,
            self.engine,
            load,
            time.monotonic,
            kv_events,
            config.timeouts.failover_s,
            self.placer,
        )
        self.cell.traces = TraceBook(config.metrics.traces_kept)
        endpoint = config.metrics.otlp_endpoint
        self._spans = Spans.to_collector(endpoint, model.name) if endpoint else None
        if self._spans:
            self.cell.traces.on_end = self._spans.tell
        register_load_metrics(registry, model.name, load, lambda: self.cell.membership, time.monotonic)
        register_failover_metrics(registry, model.name, self.cell.losses, lambda: self.cell.membership)
        register_placement_metrics(registry, model.name, self.placer)
        self.health = Health(config.timeouts.stall_s)
        self.health.readiness = self._problem
        self._for_clients = (INFERENCE, GATEWAYS) if model.gateway else (INFERENCE,)
        self._server = RpcServer(
            (*self._for_clients, WORKERS, CLUSTER),
            config.router.max_message_mb,
            guard.identify,
            server_tls(config.router),
            config.router.reflection,
            config.router.max_connection_age_s,
        )
        self._cluster = cluster_service.ClusterService(
            config,
            model.name,
            self.cell,
            self.engine,
            guard.operator,
            time.monotonic,
            self.asked_to_leave.set,
            self.placer,
        )
        grammars = Grammars(model.tokenizer, GrammarEngine(model.tokenizer, model.vocab_size, model.eos_token_ids))
        limits = partial(cell_limits, config, model, self.cell)
        self.door = FrontDoor(
            model,
            self.engine,
            limits,
            metrics,
            time.monotonic,
            grammars.grammar_of,
            self.cell.traces,
            config.metrics.trace_share,
        )
        binder = ToolBinder(model.tokenizer, grammars.schema_problem)
        inference = inference_service.InferenceService(model, self.door, Turns(model, grammars, binder))
        add_InferenceServicer_to_server(inference, self._server.server)
        add_WorkersServicer_to_server(
            workers_service.WorkersService(self.cell, self._server.door.pause), self._server.server
        )
        add_ClusterServicer_to_server(self._cluster, self._server.server)
        if model.gateway:
            loads = LoadMeter(config, self.cell, self.engine, time.monotonic)
            gateways = gateway_service.VllmEngineService(model, model.gateway, self.door, binder, loads, kv_events)
            add_VllmEngineServicer_to_server(gateways, self._server.server)
        self._metrics_server: RunningMetrics | None = None
        self._run_file: Path | None = None
        self._followers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Serve. Raises ConfigError naming the setting when a port cannot be had."""
        config = self._config
        probes = {"/livez": self.health.liveness, "/readyz": self.health.readiness}
        self._metrics_server = serve_metrics(self._registry, config.metrics.host, config.metrics.base_port, probes)
        try:
            port = await self._server.start(config.router.host, config.router.port, "router.port")
        except BaseException:
            self._metrics_server.close()
            raise
        self.address = reachable(config.router.host, port)
        self._cluster.metrics_address = reachable(config.metrics.host, self._metrics_server.port)
        for entry in (WORKERS, CLUSTER):
            await self._server.set_serving(entry, True)
        self._followers = [asyncio.create_task(it) for it in (self._follow_readiness(), self._beat())]
        self._run_file = write_run_file(config.run_dir, self.address, self._cluster.metrics_address)
        logger.info("listening on %s, metrics on %s", self.address, self._cluster.metrics_address)

    async def drain(self) -> None:
        """Refuse new requests; return when the accepted ones have ended or timeouts.drain_s has passed."""
        logger.info("draining: %d requests to finish", self.engine.num_running + self.engine.num_waiting)
        self.cell.drain()
        await self._server.refuse_probes()
        await self._finish()

    async def leave(self) -> None:
        """As `drain`, but make way for a successor: connections are told to go away at once (GOAWAY), new ones are not
        taken, and workers keep their weights and look for the next router, but for a group of all_to_all."""
        logger.info("leaving: %d requests to finish", self.engine.num_running + self.engine.num_waiting)
        self.cell.drain()
        stopping = asyncio.create_task(self._server.stop(self._config.timeouts.drain_s + GOODBYE_S))
        try:
            await self._finish()
            self.engine.fail_all("the router left before the answer ended")
            if self._config.transport == "links":
                self._connections.make_way()
            else:
                self._connections.shut_down("the router leaves")
            await stopping
        finally:
            stopping.cancel()

    async def _finish(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.timeouts.drain_s):
                await self.engine.idle.wait()

    async def close(self, reason: str) -> None:
        """Fail what still runs, send the workers away, stop serving."""
        self.cell.drain()
        await self._server.refuse_probes()
        self.engine.fail_all(f"the router ended: {reason}")
        self._connections.shut_down(reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await self._connections.all_closed()
        self._connections.end_all()
        await self._server.stop(CALLS_END_S)
        for follower in self._followers:
            follower.cancel()
        self.door.preparation.close()
        if self._spans:
            await asyncio.to_thread(self._spans.close)
        if self._run_file:
            self._run_file.unlink(missing_ok=True)
            # The last process out removes the directory, which matters when the launcher itself was killed.
            with contextlib.suppress(OSError):
                self._run_file.parent.rmdir()
        if self._metrics_server:
            self._metrics_server.close()

    async def _follow_readiness(self) -> None:
        """Health of the whole server and of what clients call is the cell's readiness; each role has its own entry."""
        was_ready = False
        while True:
            await self.cell.changed.wait()
            self.cell.changed.clear()
            ready = self.cell.is_ready
            if ready != was_ready:
                logger.info("the cell is ready" if ready else "the cell is not ready: %s", *self._missing(ready))
                was_ready = ready
            for entry in (WHOLE_SERVER, *self._for_clients):
                await self._server.set_serving(entry, ready)
            for role in Role:
                await self._server.set_serving(role_entry(role), self.cell.membership.serves(role))

    async def _beat(self) -> None:
        """The event loop turns."""
        while True:
            self.health.beat()
            await asyncio.sleep(BEAT_S)

    def _problem(self) -> str:
        """What keeps the cell from serving, in words."""
        return "" if self.cell.is_ready else self.engine.refusal or self.cell.membership.describe_missing()

    def _missing(self, ready: bool) -> tuple[str, ...]:
        return () if ready else (self._problem(),)


def role_entry(role: Role) -> str:
    """In gRPC's health service: whether the workers of a role can do what it does."""
    return f"moonshard.{role.value}"


def cell_limits(config: CellConfig, model: ServedModel, cell: Cell) -> Limits:
    """What the cell can serve now; before any attention worker has told, what the configuration lets expect."""
    attention = config.attention
    return Limits(
        vocab_size=model.vocab_size,
        max_position_embeddings=model.max_position_embeddings,
        kv_capacity=cell.membership.kv_capacity or attention.num_blocks * attention.block_size,
        default_max_tokens=config.router.default_max_tokens,
        eos_token_ids=model.eos_token_ids,
    )
