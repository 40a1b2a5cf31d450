"""The expert-shard process: load, say so, then serve batches until told to stop."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from moonshard.collective import open_meeting
from moonshard.config import CellConfig
from moonshard.errors import ConfigError
from moonshard.experts.counters import LoadCounters
from moonshard.experts.fault_hooks import FaultHooks
from moonshard.experts.keeper import Keeper, SlotLoader
from moonshard.experts.metrics import ExpertMetrics
from moonshard.experts.sentinel import Sentinel
from moonshard.experts.shard import Shard, Stack
from moonshard.experts.windows import LoadWindow, LoadWindows, WindowRule
from moonshard.kernels import Precision
from moonshard.model import native_experts
from moonshard.model.checkpoint import Checkpoint
from moonshard.model.experts import StackSlots, load_expert_stacks
from moonshard.transport.all_to_all import AllToAllEndpoint
from moonshard.transport.contract import Endpoint
from moonshard.transport.links import LinkEndpoint
from moonshard.transport.links.address import advertised, tcp_address
from moonshard.transport.slots import Slots
from moonshard.v1 import control_pb2 as pb
from moonshard.worker import Worker, native_pool

logger = logging.getLogger(__name__)

# How long `receive` waits before the loop looks at whether it should stop.
POLL_S = 0.5
# How often the shard looks whether a window of counts may leave, at most.
LOAD_S_MIN = 0.25
WILDCARDS = ("0.0.0.0", "::")


def serve(worker: Worker) -> None:
    """The life of shard `worker.rank`."""
    if worker.rank >= (limit := worker.topology.num_expert_workers):
        raise ConfigError("rank", f"must be below num_shards x num_replicas = {limit}, got {worker.rank}")
    experts = worker.topology.experts_of(worker.topology.shard_of(worker.rank))
    slots = _slots(worker, experts)
    shard, keeper = _load(worker, experts, slots)
    endpoint = _open(worker, slots)
    sentinel = _watch_weights(worker, shard)
    try:
        if keeper:
            keeper.start()
        windows = _tell_load(worker, shard)
        metrics = ExpertMetrics(
            worker.registry,
            worker.config.metrics,
            worker.model_name,
            worker.rank,
            shard.counters,
            windows,
            endpoint.stats,
            experts,
        )
        _loop(worker, shard, endpoint, metrics)
    finally:
        if keeper:
            keeper.close()
        if sentinel:
            sentinel.close()
        endpoint.close()


def _slots(worker: Worker, experts: range) -> Slots | None:
    """Where experts lie, if they may move."""
    if not (spare := worker.config.experts.redundant_slots):
        return None
    return Slots(worker.spec, experts, len(experts) + spare)


def _load(worker: Worker, experts: range, slots: Slots | None) -> tuple[Shard, Keeper | None]:
    pool = native_pool("expert", worker.config, worker.device)
    num_slots, progress = slots.num_slots if slots else None, worker.progress.loaded
    stacks: Mapping[int, Stack]
    loader: SlotLoader
    checkpoint = Checkpoint(worker.config.checkpoint, worker.model)
    try:
        if pool and native_experts.can_load(checkpoint):
            precision, cache = _precision(worker), worker.config.experts.repacked_cache
            stacks = native = native_experts.load_native_stacks(
                checkpoint, experts, pool, precision, progress, cache, num_slots
            )
            loader = native_experts.NativeSlots(checkpoint, native)
        else:
            stacks = plain = load_expert_stacks(checkpoint, experts, worker.dtype, worker.device, progress, num_slots)
            loader = StackSlots(checkpoint, plain)
        logger.info("loaded experts %d..%d: %d bytes read", experts.start, experts.stop - 1, checkpoint.bytes_read)
        return Shard(stacks, experts, slots), _keeper(worker, slots, loader)
    finally:
        if not slots:
            checkpoint.close()


def _keeper(worker: Worker, slots: Slots | None, loader: SlotLoader) -> Keeper | None:
    """Holds what the router has published by now."""
    if slots is None:
        return None
    placements, shard = worker.inbox.placements, worker.topology.shard_of(worker.rank)
    keeper = Keeper(shard, slots, loader, worker.link.send)
    keeper.catch_up(placements.current)
    placements.follow(keeper.follow)
    placements.obey(keeper.order)
    return keeper


def _precision(worker: Worker) -> Precision:
    """What the kernels call it. The default rounds as llama.cpp does (DECISIONS)."""
    wanted = worker.config.experts.activations
    return "exact" if wanted == "float32" else "int8" if wanted == "auto" else wanted


def _open(worker: Worker, slots: Slots | None) -> Endpoint:
    config = worker.config
    if config.transport == "links":
        address = listen_address(config, worker.rank, worker.advertise_host)
        shard = worker.topology.shard_of(worker.rank)
        endpoint = LinkEndpoint(worker.spec, shard, address, timeout_s=config.timeouts.combine_s, slots=slots)
        # The process may be ended while its main thread is elsewhere; no socket file may stay behind.
        if config.links == "unix":
            worker.lifetime.on_forced_exit.append(lambda: Path(address.removeprefix("unix:")).unlink(missing_ok=True))
        _say_ready(worker, advertised(endpoint.address, worker.advertise_host))
        return endpoint
    meeting = open_meeting(worker, is_shard=True)
    worker.link.send(pb.WorkerMessage(ready=pb.Ready(data_address=f"rank:{worker.rank}")))
    return AllToAllEndpoint(meeting, worker.spec, worker.rank, worker.topology.num_attention)


def listen_address(config: CellConfig, shard: int, advertise_host: str) -> str:
    """Where a shard's links listen. ConfigError when nobody could reach it there."""
    if config.links == "unix":
        return f"unix:{config.run_dir}/expert-{shard}.sock"
    if config.network.bind_host in WILDCARDS and not advertise_host:
        raise ConfigError("network.bind_host", f"{config.network.bind_host} needs --advertise HOST, got none")
    return tcp_address(config.network.bind_host, config.network.link_port)


def _watch_weights(worker: Worker, shard: Shard) -> Sentinel | None:
    """From now on, where the configuration wants it and weights lie in this machine's memory."""
    round_s = worker.config.experts.verify_s
    if not round_s or worker.device.type != "cpu":
        return None

    def alarm(layer: int, expert: int) -> None:
        kind = pb.Alarm.KIND_WEIGHTS
        worker.link.send(
            pb.WorkerMessage(alarm=pb.Alarm(kind=kind, ranks=[worker.rank], layer=layer, experts=[expert]))
        )
        reason = f"layer {layer}, expert {expert}: weights are not what was loaded"
        worker.link.send(pb.WorkerMessage(leave=pb.Leave(reason=reason)))
        worker.lifetime.stop(reason, failed=True)

    sentinel = Sentinel(shard.weights, shard.look, round_s, alarm)
    sentinel.start()
    worker.inbox.on_verify = sentinel.hurry
    return sentinel


def _tell_load(worker: Worker, shard: Shard) -> LoadWindows:
    """Windows of the shard's counts go to the router from now on."""
    limits = worker.config.metrics
    rule = WindowRule(limits.load_window_s, limits.load_window_rows)
    windows = LoadWindows(shard.counters, rule, time.monotonic())
    every_s = max(LOAD_S_MIN, limits.load_window_s / 4)
    worker.link.start_sending("load", lambda: load_message(shard.counters, windows.take(time.monotonic())), every_s)
    return windows


def load_message(counters: LoadCounters, window: LoadWindow | None) -> pb.WorkerMessage | None:
    if window is None:
        return None
    rows = window.rows_LE.reshape(-1).tolist()
    load = pb.ExpertLoad(span_s=window.span_s, layers=counters.moe_layers, experts=counters.experts, rows=rows)
    return pb.WorkerMessage(expert_load=load)


def _say_ready(worker: Worker, address: str) -> None:
    worker.link.send(pb.WorkerMessage(ready=pb.Ready(data_address=address)))
    worker.health.readiness = lambda: "" if worker.link.is_connected else "lost the router"


def _loop(worker: Worker, shard: Shard, endpoint: Endpoint, metrics: ExpertMetrics) -> None:
    def answered(rows: int, compute_s: float) -> None:
        metrics.compute_seconds.observe(compute_s)
        metrics.batch_rows.observe(rows)
        worker.progress.num_iterations += 1
        worker.progress.num_tokens += rows

    faults = FaultHooks(worker.config.experts.fault_hooks_s, shard.weights)
    # Faults need Python's steps.
    if isinstance(endpoint, LinkEndpoint) and not faults.allowed and (table := shard.table(answered)):
        endpoint.answer_with(table)
    with torch.inference_mode():
        while not worker.lifetime.stopping.is_set():
            worker.health.beat()
            batch = endpoint.receive(POLL_S)
            faults.while_partitioned(worker.lifetime.stopping.wait)
            if batch is None:
                continue
            started = time.perf_counter()
            y_RD = shard.compute(batch)
            compute_s = time.perf_counter() - started
            endpoint.reply(faults.age(batch), faults.distort(y_RD))
            answered(len(batch.x_RD), compute_s)
