"""The attention worker's own loop in one process: orders in, tokens out, the routing of traced sequences told."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from moonshard.attention.grammar_desk import GrammarDesk
from moonshard.attention.loading import LateDispatcher
from moonshard.attention.metrics import AttentionMetrics
from moonshard.attention.routing_trace import RoutingTrace
from moonshard.attention.worker import _loop
from moonshard.grammar import GrammarEngine
from moonshard.health import Health
from moonshard.model.checkpoint import Checkpoint
from moonshard.model.decoder import Decoder
from moonshard.model.experts import load_expert_stacks
from moonshard.model.moe import LocalExperts
from moonshard.model.reference import Reference
from moonshard.model.weights import load_weights
from moonshard.rpc.codec import sampling_to_proto
from moonshard.sampling import SamplingParams
from moonshard.tokenizer import load_tokenizer
from moonshard.transport.contract import TransportStats
from moonshard.v1 import control_pb2 as pb
from moonshard.worker import LoadProgress
from tests.unit.attention.attention_engines import make_engine

NUM_SHARDS, PER_SHARD, NEW_TOKENS = 8, 48, 5


@dataclass
class OneProcess:
    """A dispatcher whose shards are function calls; it waits for the shard of a row's first expert."""

    experts: LocalExperts
    stats: TransportStats = field(default_factory=lambda: TransportStats.for_peers(NUM_SHARDS))
    woken: threading.Event = field(default_factory=threading.Event)
    routed: list[tuple[int, list[list[int]]]] = field(default_factory=list)

    def begin_step(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def dispatch(self, layer: int, x_TD: Tensor, topk_ids_TK: Tensor, topk_weights_TK: Tensor) -> Any:
        self.routed.append((layer, topk_ids_TK.tolist()))
        self.first = int(topk_ids_TK[0, 0]) // PER_SHARD
        return self.experts.dispatch(layer, x_TD, topk_ids_TK, topk_weights_TK)

    def combine(self, handle: Any) -> Tensor:
        self.stats.wait_s[self.first] += 0.5
        return self.experts.combine(handle)

    def idle(self, timeout_s: float) -> None:
        self.woken.wait(timeout_s)
        self.woken.clear()

    def wake(self) -> None:
        self.woken.set()


@pytest.fixture
def parts(tiny_checkpoint: Path) -> tuple[Decoder, LateDispatcher, OneProcess, GrammarEngine]:
    reference = Reference.load(tiny_checkpoint)
    config = reference.config
    with Checkpoint(tiny_checkpoint, config) as checkpoint:
        weights = load_weights(checkpoint, torch.float32, torch.device("cpu"))
        stacks = load_expert_stacks(checkpoint, range(config.n_routed_experts), torch.float32, "cpu")
    routed, target = LateDispatcher(), OneProcess(LocalExperts(stacks))
    routed.target = target  # type: ignore[assignment]  # what the loop and the model need of one
    grammars = GrammarEngine(load_tokenizer(tiny_checkpoint), config.vocab_size, config.eos_token_ids)
    return Decoder(config, weights, routed), routed, target, grammars


def order(name: str, traced: bool, grammar: pb.Grammar | None = None) -> pb.RouterMessage:
    sampling = sampling_to_proto(SamplingParams(temperature=0, max_tokens=NEW_TOKENS, seed=1))
    sequence = pb.Sequence(
        request_id=name, prompt_token_ids=[5, 6, 7], sampling=sampling, traced=traced, grammar=grammar
    )
    return pb.RouterMessage(admit=pb.Admit(sequences=[sequence]))


def test_the_loop_serves_traces_and_waits_for_grammars(
    parts: tuple[Decoder, LateDispatcher, OneProcess, GrammarEngine],
) -> None:
    decoder, routed, target, grammars = parts
    engine, stopping, sent = make_engine(decoder), threading.Event(), list[pb.WorkerMessage]()
    orders = [order("seen", True), order("bound", False, pb.Grammar(text="start: /[a-c]{9}/"))]

    def drain() -> list[pb.RouterMessage]:
        found, orders[:] = list(orders), []
        return found

    def send(message: pb.WorkerMessage) -> None:
        sent.append(message)
        ended = sum(bool(output.finish_reason) for m in sent for output in m.outputs.outputs)
        if ended == 2:
            stopping.set()

    worker: Any = SimpleNamespace(
        lifetime=SimpleNamespace(stopping=stopping),
        inbox=SimpleNamespace(drain=drain),
        health=Health(60.0),
        progress=LoadProgress(),
        link=SimpleNamespace(send=send),
    )
    trace = routed.trace = RoutingTrace(lambda: target.stats.wait_s[:])
    desk = GrammarDesk(grammars, target.wake, engine.scheduler.runs)
    limit = threading.Timer(60.0, stopping.set)
    limit.start()
    try:
        _loop(worker, engine, desk, target, AttentionMetrics(CollectorRegistry(), "m", 0, engine), trace)  # type: ignore[arg-type]
    finally:
        limit.cancel()
        desk.close()
    assert limit.finished.is_set()
    assert worker.progress.num_tokens == 2 * NEW_TOKENS
    said = [output.token_ids[0] for m in sent for output in m.outputs.outputs if output.request_id == "bound"]
    assert set(said) <= set(b"abc")
    steps = [step for message in sent for step in message.routing.steps]
    assert {step.request_id for step in steps} == {"seen"}
    assert [(step.position, step.num_tokens) for step in steps] == [(0, 3), *((2 + n, 1) for n in range(1, NEW_TOKENS))]
    layers = decoder.config.moe_layers
    told = [route for step in steps for route in step.layers]
    assert [route.layer for route in told] == list(layers) * NEW_TOKENS
    assert list(told[-1].experts) in [row for _, rows in target.routed for row in rows]
    for route in told:
        assert sum(route.wait_s) == pytest.approx(0.5)
    first = next(i for i, message in enumerate(sent) if message.HasField("routing"))
    assert any(output.request_id == "seen" for output in sent[first + 1].outputs.outputs) or sent[first + 1].HasField(
        "kv_events"
    )
