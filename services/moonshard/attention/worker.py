"""The attention process: load, meet the shards, then iterate until told to stop."""

import queue
from collections.abc import Iterable

from moonshard.attention.engine import Engine, Output
from moonshard.attention.kv_cache import LatentCache
from moonshard.attention.loading import LateDispatcher, load_decoder
from moonshard.attention.metrics import AttentionMetrics
from moonshard.attention.runner import Runner
from moonshard.attention.scheduler import Scheduler
from moonshard.attention.sequence import Sequence
from moonshard.errors import ConfigError, ProtocolMismatch, TransportTimeout
from moonshard.rpc import codec
from moonshard.transport.all_to_all import AllToAllDispatcher, join_group
from moonshard.transport.contract import Dispatcher
from moonshard.transport.links import LinkDispatcher
from moonshard.v1 import control_pb2 as pb
from moonshard.worker import Worker

# How long an idle worker waits before it looks at whether it should stop.
IDLE_S = 0.5


def serve(worker: Worker) -> None:
    """The life of attention worker `worker.rank`."""
    if worker.rank >= worker.topology.num_attention:
        raise ConfigError("rank", f"must be below num_attention = {worker.topology.num_attention}, got {worker.rank}")
    routed = LateDispatcher()
    decoder = load_decoder(worker, routed)
    members = _await_members(worker)
    if members is None:
        return
    routed.target = dispatcher = _meet(worker, members)
    try:
        engine = Engine(Scheduler(worker.config.attention), Runner(decoder, _cache(worker), worker.device))
        worker.inbox.wakes.append(dispatcher.wake)
        worker.lifetime.on_stop.append(dispatcher.wake)
        metrics = AttentionMetrics(worker.registry, worker.model_name, worker.rank, engine, dispatcher.stats)
        _say_ready(worker)
        _loop(worker, engine, dispatcher, metrics)
    finally:
        dispatcher.close()


def _await_members(worker: Worker) -> pb.Members | None:
    """The shards' addresses, which the router sends when all of them have loaded; None when stopped before."""
    waited_s = 0.0
    while not worker.lifetime.stopping.is_set():
        try:
            message = worker.inbox.messages.get(timeout=IDLE_S)
        except queue.Empty:
            waited_s += IDLE_S
            if waited_s >= worker.config.timeouts.load_s:
                raise TransportTimeout(f"the shards did not become ready within {waited_s:g} s") from None
            continue
        if message.WhichOneof("body") == "members":
            return message.members
        raise ProtocolMismatch(f"expected members from the router first, got {message.WhichOneof('body')}")
    return None


def _meet(worker: Worker, members: pb.Members) -> Dispatcher:
    config = worker.config
    if config.transport == "links":
        addresses = [shard.data_address for shard in sorted(members.shards, key=lambda s: s.shard)]
        return LinkDispatcher(worker.spec, worker.rank, addresses, timeout_s=config.timeouts.combine_s)
    rank = worker.topology.attention_rank(worker.rank)
    group = join_group(
        config.collective_address, rank, worker.topology.world_size, worker.device, config.timeouts.join_s
    )
    return AllToAllDispatcher(group, worker.spec)


def _cache(worker: Worker) -> LatentCache:
    limits, model = worker.config.attention, worker.model
    return LatentCache(
        model.num_hidden_layers,
        limits.num_blocks,
        limits.block_size,
        model.latent_dim,
        worker.dtype,
        worker.device,
    )


def _say_ready(worker: Worker) -> None:
    limits = worker.config.attention
    credits = pb.Credits(
        block_size=limits.block_size,
        num_blocks=limits.num_blocks,
        max_num_seqs=limits.max_num_seqs,
        max_step_tokens=limits.max_step_tokens,
    )
    worker.link.send(pb.WorkerMessage(ready=pb.Ready(credits=credits)))


def _loop(worker: Worker, engine: Engine, dispatcher: Dispatcher, metrics: AttentionMetrics) -> None:
    while not worker.lifetime.stopping.is_set():
        outputs = _obey(engine, worker.inbox.drain())
        plan = engine.plan()
        if plan.num_tokens:
            dispatcher.begin_step(plan.num_tokens)
            with metrics.step_seconds.time():
                outputs += engine.step(plan)
            metrics.step_tokens.observe(plan.num_tokens)
        if outputs:
            worker.link.send(pb.WorkerMessage(outputs=pb.SequenceOutputs(outputs=map(_to_proto, outputs))))
        if not plan.num_tokens:
            dispatcher.idle(IDLE_S)
        worker.progress.num_iterations, worker.progress.num_tokens = engine.num_steps, engine.num_generated_tokens


def _obey(engine: Engine, messages: Iterable[pb.RouterMessage]) -> list[Output]:
    """Carry out the router's orders in their order; returns what could not be admitted."""
    refusals: list[Output] = []
    for message in messages:
        match message.WhichOneof("body"):
            case "admit":
                refusals += engine.admit([_to_sequence(s) for s in message.admit.sequences])
            case "abort":
                engine.abort(message.abort.request_ids)
            case "members":
                pass  # Membership changes while running come with failover.
            case other:
                raise ProtocolMismatch(f"the router sent {other!r}, expected admit, abort or members")
    return refusals


def _to_sequence(message: pb.Sequence) -> Sequence:
    return Sequence(message.request_id, list(message.prompt_token_ids), codec.sampling_from_proto(message.sampling))


def _to_proto(output: Output) -> pb.SequenceOutput:
    stopped = output.finish_reason is not None and output.finish_reason.value == "stop"
    return pb.SequenceOutput(
        request_id=output.request_id,
        token_ids=[] if output.token is None else [output.token],
        finish_reason=codec.finish_to_proto(output.finish_reason),
        stop_token_id=output.token if stopped else None,
        error=output.error,
    )
