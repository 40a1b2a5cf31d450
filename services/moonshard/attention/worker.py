"""The attention process: load, meet the shards, then iterate until told to stop."""

import queue
from collections.abc import Callable, Collection

from moonshard.attention.engine import Engine, Output
from moonshard.attention.failover import follow_members, join_groups, meet_shards
from moonshard.attention.grammar_desk import GrammarDesk
from moonshard.attention.kv_cache import LatentCache
from moonshard.attention.link_metrics import register_link_metrics
from moonshard.attention.loading import LateDispatcher, load_decoder
from moonshard.attention.metrics import AttentionMetrics
from moonshard.attention.orders import obey
from moonshard.attention.placing import FollowedPlacement
from moonshard.attention.report import Report
from moonshard.attention.routing_trace import RoutingTrace
from moonshard.attention.runner import Runner
from moonshard.attention.scheduler import Scheduler
from moonshard.attention.wire import credits_to_proto
from moonshard.errors import ConfigError, ProtocolMismatch, TransportTimeout
from moonshard.grammar import GrammarEngine
from moonshard.tokenizer import load_tokenizer
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
    placed = FollowedPlacement(worker) if worker.spec.sums == "expert" else None
    routed = LateDispatcher()
    decoder, grammars = load_decoder(worker, routed), _grammars(worker)
    dispatcher = _meet_by_links(worker, placed) if worker.config.transport == "links" else join_groups(worker)
    if dispatcher is None:
        return
    routed.target = dispatcher
    try:
        engine = Engine(
            Scheduler(worker.config.attention), Runner(decoder, _cache(worker), worker.device), _lacking(dispatcher)
        )
        worker.inbox.wakes.append(dispatcher.wake)
        worker.lifetime.on_stop.append(dispatcher.wake)
        metrics = AttentionMetrics(worker.registry, worker.model_name, worker.rank, engine)
        register_link_metrics(worker.registry, worker.model_name, worker.rank, dispatcher.stats, routed.times)
        routed.trace = RoutingTrace(lambda: dispatcher.stats.wait_s)
        _say_ready(worker)
        desk = GrammarDesk(grammars, dispatcher.wake, engine.scheduler.runs)
        try:
            _loop(worker, engine, desk, dispatcher, metrics, routed.trace)
        finally:
            desk.close()
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


def _grammars(worker: Worker) -> GrammarEngine:
    model = worker.model
    return GrammarEngine(load_tokenizer(worker.config.checkpoint), model.vocab_size, model.eos_token_ids)


def _meet_by_links(worker: Worker, placed: FollowedPlacement | None) -> Dispatcher | None:
    """None when stopped before."""
    worker.link.send(pb.WorkerMessage(loaded=pb.Loaded()))
    if (members := _await_members(worker)) is None:
        return None
    dispatcher = meet_shards(worker, members, placed.table if placed else None)
    follow_members(worker, dispatcher, members)
    if placed:
        placed.attach(dispatcher)
    return dispatcher


def _lacking(dispatcher: Dispatcher) -> Callable[[], Collection[int]]:
    return lambda: dispatcher.degraded.rows if isinstance(dispatcher, LinkDispatcher) else ()


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
    worker.link.send(pb.WorkerMessage(ready=pb.Ready(credits=credits_to_proto(worker.config.attention))))


def _loop(
    worker: Worker,
    engine: Engine,
    desk: GrammarDesk,
    dispatcher: Dispatcher,
    metrics: AttentionMetrics,
    trace: RoutingTrace,
) -> None:
    report = Report(engine, worker.link.send)
    while not worker.lifetime.stopping.is_set():
        worker.health.beat()
        outputs = obey(engine, desk, worker.inbox.drain())
        plan = engine.plan()
        outputs += [Output(sequence.request_id, preempted=True) for sequence in plan.preempted]
        if plan.num_tokens:
            dispatcher.begin_step(plan.num_tokens)
            with metrics.step_seconds.time(), trace.of(plan, worker.link.send):
                outputs += engine.step(plan)
            metrics.step_tokens.observe(plan.num_tokens)
        report.send(outputs)
        if not engine.scheduler.has_work:
            dispatcher.idle(IDLE_S)
        worker.progress.num_iterations, worker.progress.num_tokens = engine.num_steps, engine.num_generated_tokens
