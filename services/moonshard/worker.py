"""What the two kinds of worker process have in common: arguments, model, router link, metrics, and their end."""

import argparse
import logging
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil
import torch
from prometheus_client import CollectorRegistry

from moonshard import kernels, log
from moonshard.config import CellConfig, RouterConfig, read_secret
from moonshard.errors import CheckpointError, ConfigError, MoonshardError
from moonshard.health import Health
from moonshard.kernels import Pool
from moonshard.metrics import new_registry, serve_metrics
from moonshard.model.config import ModelConfig
from moonshard.placed import Placement
from moonshard.placement_news import PlacementNews
from moonshard.process import USER_ERROR_STATUS, Lifetime
from moonshard.rpc.lasting_link import LastingLink
from moonshard.rpc.tls import worker_tls
from moonshard.rpc.worker_stream import RouterLink, WorkerAccess
from moonshard.topology import Topology
from moonshard.transport.contract import WireSpec
from moonshard.v1 import control_pb2 as pb

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class WorkerArguments:
    """How a launcher starts a worker. lifeline: a descriptor that reads end-of-file when the launcher is gone.

    advertise_host: under which the others reach this worker; "" is the host it listens on.
    """

    config: CellConfig
    rank: int
    router_address: str
    lifeline: int | None = None
    advertise_host: str = ""


@dataclass(frozen=True, slots=True)
class Worker:
    """The surroundings of a worker's own loop."""

    config: CellConfig
    model: ModelConfig
    topology: Topology
    rank: int
    spec: WireSpec
    device: torch.device
    dtype: torch.dtype
    registry: CollectorRegistry
    link: LastingLink
    inbox: "Inbox"
    lifetime: Lifetime
    progress: "LoadProgress"
    health: Health
    advertise_host: str = ""

    @property
    def model_name(self) -> str:
        return self.config.model_name


@dataclass(slots=True)
class LoadProgress:
    """Written by the loader and the loop, read by the heartbeat."""

    loaded_bytes: int = 0
    total_bytes: int = 0
    num_iterations: int = 0
    num_tokens: int = 0

    def loaded(self, loaded_bytes: int, total_bytes: int) -> None:
        self.loaded_bytes, self.total_bytes = loaded_bytes, total_bytes


class Inbox:
    """Messages from the router, except Shutdown, which ends the worker. `wakes` are called after each.

    on_members: takes Members messages at once, in the link's thread, instead of the loop that may wait for a shard.
    placements: takes what tells of experts' places, likewise. on_verify: does what a Verify asks for.
    """

    def __init__(self, lifetime: Lifetime, placements: PlacementNews) -> None:
        self.placements = placements
        self.messages: queue.SimpleQueue[pb.RouterMessage] = queue.SimpleQueue()
        self.wakes: list[Callable[[], None]] = []
        self.on_members: Callable[[pb.Members], None] | None = None
        self.on_verify: Callable[[], None] = lambda: None
        self._lifetime = lifetime
        self.epoch = 0  # the last the router told of
        self._link: LastingLink | None = None
        # `attach` and the link's reader may both sort messages at the start; their order must not change.
        self._sorting = threading.Lock()

    def attach(self, link: LastingLink) -> None:
        self._link = link
        self.notify()

    def notify(self) -> None:
        """Called by the link's threads whenever something came or the link is lost."""
        if self._link is None:
            return
        with self._sorting:
            while (message := _poll(self._link.received())) is not None:
                if message.WhichOneof("body") == "members":
                    self.epoch = message.members.epoch
                if message.WhichOneof("body") == "shutdown":
                    self._lifetime.stop(f"the router says: {message.shutdown.reason}")
                elif self.on_members and message.WhichOneof("body") == "members":
                    self.on_members(message.members)
                elif message.WhichOneof("body") == "verify":
                    self.on_verify()
                elif message.WhichOneof("body") == "placement":
                    self.placements.tell(message.placement)
                elif message.WhichOneof("body") == "hold":
                    self.placements.order(message.hold)
                else:
                    self.messages.put(message)
        if self._link.lost.is_set():
            self._lifetime.stop(f"lost the router: {self._link.reason}", failed=True)
        for wake in self.wakes:
            wake()

    def forget(self) -> None:
        """The router is another one: what the former one wants to be run is nobody's any more."""
        self.messages.put(pb.RouterMessage(abort=pb.Abort(all=True)))

    def drain(self) -> list[pb.RouterMessage]:
        """All that waits, oldest first."""
        found = []
        while (message := _poll(self.messages)) is not None:
            found.append(message)
        return found


def _poll(source: "queue.Queue[pb.RouterMessage] | queue.SimpleQueue[pb.RouterMessage]") -> pb.RouterMessage | None:
    try:
        return source.get_nowait()
    except queue.Empty:
        return None


def run(role: str, serve: Callable[[Worker], None], arguments: WorkerArguments) -> int:
    """A worker process from its first log line to its exit status: 0 asked to end, 2 the user's to mend, else 1.

    role: "attention" or "expert".
    """
    name = f"{role}-{arguments.rank}"
    log.setup(name)
    _quieten_libraries()
    lifetime = Lifetime()
    lifetime.handle_signals(ignore_interrupt=arguments.lifeline is not None)
    if arguments.lifeline is not None:
        lifetime.watch_lifeline(arguments.lifeline)
    try:
        with _surroundings(role, arguments, lifetime) as worker:
            _serve(worker, serve)
    except MoonshardError as error:
        lifetime.stop(str(error), failed=True)
        return USER_ERROR_STATUS if isinstance(error, ConfigError | CheckpointError) else 1
    finally:
        # The last process out removes it, which matters when the launcher itself was killed.
        with suppress(OSError):
            arguments.config.run_dir.rmdir()
    return 1 if lifetime.failed else 0


def _quieten_libraries() -> None:
    """Settings that libraries take from the environment only.

    torch's store looks up the name of every peer's address; where no name server answers, the resolver's defaults would
    hold a group's forming up for five seconds. And a lost peer is ours to report, not torch's in fifty lines.
    """
    os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _serve(worker: Worker, serve: Callable[[Worker], None]) -> None:
    try:
        serve(worker)
    except MoonshardError as error:
        if worker.lifetime.stopping.is_set():
            # The end was ordered: what breaks on the way down is not news.
            return
        worker.lifetime.stop(str(error), failed=True)
        worker.link.send(pb.WorkerMessage(leave=pb.Leave(reason=str(error))))
        raise


@contextmanager
def _surroundings(role: str, arguments: WorkerArguments, lifetime: Lifetime) -> Iterator[Worker]:
    config, rank = arguments.config, arguments.rank
    torch.set_num_threads(max(1, _num_threads(role, config)))
    model = ModelConfig.from_dir(config.checkpoint)
    topology = Topology(model.n_routed_experts, config.num_shards, config.num_attention, config.num_replicas)
    device, dtype = resolve_device(config, rank)
    registry, progress = new_registry(), LoadProgress()
    health = Health(config.timeouts.stall_s)
    probes = {"/livez": health.liveness, "/readyz": lambda: health.readiness()}
    metrics = serve_metrics(registry, config.metrics.host, metrics_port(role, rank, config), probes)
    try:
        metrics_address = f"{arguments.advertise_host or config.metrics.host}:{metrics.port}"
        join = _join(role, rank, topology, model, metrics_address)
        start = Placement.blocks(topology.num_experts, topology.num_shards, model.moe_layers)
        inbox = Inbox(lifetime, PlacementNews(start))
        link = _lasting_link(arguments, join, inbox, lifetime)
        try:
            inbox.attach(link)
            link.start_heartbeats(lambda: _heartbeat(progress), config.timeouts.heartbeat_s)
            spec = wire_spec(config, model, dtype)
            yield Worker(
                config,
                model,
                topology,
                rank,
                spec,
                device,
                dtype,
                registry,
                link,
                inbox,
                lifetime,
                progress,
                health,
                arguments.advertise_host,
            )
        finally:
            link.close()
    finally:
        metrics.close()


def _lasting_link(arguments: WorkerArguments, join: pb.Join, inbox: Inbox, lifetime: Lifetime) -> LastingLink:
    config = arguments.config

    def connect(notify: Callable[[], None], timeout_s: float) -> RouterLink:
        join.epoch = inbox.epoch
        if placement := inbox.placements.whole():
            join.placement.CopyFrom(placement)
        link = RouterLink.connect(arguments.router_address, join, timeout_s, notify, _access(config.router))
        inbox.epoch = max(inbox.epoch, link.welcome.epoch)
        inbox.placements.tell(link.welcome.placement)
        return link

    keep_s = config.timeouts.failover_s
    wanted: Callable[[], bool] = lambda: not lifetime.stopping.is_set()  # noqa: E731
    return LastingLink(connect, config.timeouts.join_s, keep_s, inbox.notify, wanted, inbox.forget)


def metrics_port(role: str, rank: int, config: CellConfig) -> int:
    """Of a worker; 0 is any free one. Ports from base_port on follow the router's: attention workers, then shards."""
    if config.metrics.worker_port or not config.metrics.base_port:
        return config.metrics.worker_port
    return config.metrics.base_port + 1 + rank + (config.num_attention if role == "expert" else 0)


def _access(router: RouterConfig) -> WorkerAccess:
    key = read_secret("router.operator_key_file", router.operator_key_file) if router.operator_key_file else None
    return WorkerAccess(worker_tls(router), (("authorization", f"Bearer {key}"),) if key else ())


def _num_threads(role: str, config: CellConfig) -> int:
    return config.experts.num_threads if role == "expert" else config.attention.num_threads


def native_pool(worker_role: str, config: CellConfig, device: torch.device) -> Pool | None:
    """Threads for the native CPU kernels, or None where torch's operators serve. ConfigError when demanded in vain."""
    if config.kernels == "torch":
        return None
    if device.type == "cpu" and kernels.available():
        return Pool(max(1, _num_threads(worker_role, config)))
    if config.kernels == "native":
        raise ConfigError("kernels", f"native kernels are not built or not for {device.type!r}; use auto or torch")
    return None


def resolve_device(config: CellConfig, rank: int) -> tuple[torch.device, torch.dtype]:
    """Where and in what precision a worker computes. CUDA has never been run in this project's tests."""
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    if cuda and config.transport != "all_to_all":
        raise ConfigError("transport", f"must be all_to_all on CUDA devices, got {config.transport!r}")
    device = torch.device("cuda", rank % max(1, torch.cuda.device_count())) if cuda else torch.device("cpu")
    if config.dtype == "auto":
        return device, torch.bfloat16 if cuda or (config.kernels != "torch" and kernels.available()) else torch.float32
    return device, DTYPES[config.dtype]


def wire_spec(config: CellConfig, model: ModelConfig, dtype: torch.dtype) -> WireSpec:
    """What both ends of the data plane agree on."""
    return WireSpec(
        hidden_size=model.hidden_size,
        top_k=model.num_experts_per_tok,
        num_experts=model.n_routed_experts,
        num_shards=config.num_shards,
        moe_layers=model.moe_layers,
        row_dtype=dtype,
        checkpoint_id=model.checkpoint_id,
        sums="expert" if config.experts.redundant_slots else "shard",
    )


def _join(role: str, rank: int, topology: Topology, model: ModelConfig, metrics_address: str) -> pb.Join:
    experts = topology.experts_of(topology.shard_of(rank)) if role == "expert" else range(0)
    return pb.Join(
        role=pb.ROLE_EXPERT if role == "expert" else pb.ROLE_ATTENTION,
        rank=rank,
        pid=os.getpid(),
        host=socket.gethostname(),
        metrics_address=metrics_address,
        first_expert=experts.start,
        end_expert=experts.stop,
        checkpoint_id=model.checkpoint_id,
    )


def _heartbeat(progress: LoadProgress) -> pb.Heartbeat:
    return pb.Heartbeat(
        progress=progress.num_iterations,
        loaded_bytes=progress.loaded_bytes,
        total_bytes=progress.total_bytes,
        tokens=progress.num_tokens,
        resident_bytes=psutil.Process().memory_info().rss,
    )


def main(role: str, serve: Callable[[Worker], None]) -> NoReturn:
    """`python -m moonshard.attention` and `python -m moonshard.experts`. Ends the process."""
    parser = argparse.ArgumentParser(prog=f"moonshard {role} worker")
    parser.add_argument("--config", type=Path, required=True, help="the cell's configuration, TOML or JSON")
    parser.add_argument("--rank", type=int, required=True, help="number of this worker within its role, from 0")
    parser.add_argument("--router", required=True, help="HOST:PORT of the router")
    parser.add_argument("--advertise", default="", help="host name or address under which others reach this worker")
    parser.add_argument("--lifeline", action="store_true", help="end when standard input closes")
    given = parser.parse_args()
    try:
        config = CellConfig.read(given.config)
    except ConfigError as error:
        parser.error(str(error))
    lifeline = sys.stdin.fileno() if given.lifeline else None
    status = run(role, serve, WorkerArguments(config, given.rank, given.router, lifeline, given.advertise))
    logging.shutdown()
    # Not by way of the interpreter: it aborts when one of torch's threads still waits for a rank that does not come.
    os._exit(status)
