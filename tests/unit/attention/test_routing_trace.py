"""What an iteration tells of the routing of traced sequences, driven by hand."""

import pytest
import torch

from moonshard.attention.plan import Chunk, StepPlan
from moonshard.attention.routing_trace import EXPERTS_MAX, RoutingTrace
from moonshard.attention.sequence import Sequence
from moonshard.sampling import SamplingParams
from moonshard.v1 import control_pb2 as pb


def sequence(name: str, traced: bool) -> Sequence:
    return Sequence(name, [1, 2, 3, 4], SamplingParams(max_tokens=4, seed=0), traced=traced)


def plan(*traced: bool) -> StepPlan:
    """One token of the first, and prompts of two tokens of the others."""
    first, *others = [sequence(f"s{number}", it) for number, it in enumerate(traced)]
    return StepPlan((Chunk(first, 3, 1),), tuple(Chunk(other, 0, 2) for other in others))


class Waits(list[float]):
    """Of two shards, so far."""


def test_rows_experts_and_waits_are_each_sequences_own() -> None:
    waits, sent = Waits([1.0, 2.0]), list[pb.WorkerMessage]()
    trace = RoutingTrace(lambda: list(waits))
    with trace.of(plan(True, False, True), sent.append):
        assert trace.is_watching
        for layer in (1, 2):
            trace.dispatched(layer, torch.tensor([[7, 3], [0, 1], [2, 4], [5, 9], [9, 6]]))
            waits[layer - 1] += 0.25
            trace.combined(0.5)
    assert not trace.is_watching
    (message,) = sent
    first, last = message.routing.steps
    assert (first.request_id, first.position, first.num_tokens, first.num_rows) == ("s0", 3, 1, 5)
    assert [list(route.experts) for route in first.layers] == [[7, 3], [7, 3]]
    assert [list(route.wait_s) for route in first.layers] == [[0.25, 0.0], [0.0, 0.25]]
    assert (last.request_id, last.position, last.num_tokens) == ("s2", 0, 2)
    assert last.layers[0].experts[0] == 9
    assert set(last.layers[0].experts) == {9, 5, 6}
    assert first.seconds > 0


def test_nothing_is_told_where_nobody_is_traced() -> None:
    sent = list[pb.WorkerMessage]()
    trace = RoutingTrace(list)
    with trace.of(plan(False, False), sent.append):
        assert not trace.is_watching
    assert sent == []


def test_an_iteration_that_fails_tells_nothing_and_is_over() -> None:
    sent = list[pb.WorkerMessage]()
    trace = RoutingTrace(list)
    with pytest.raises(RuntimeError), trace.of(plan(True), sent.append):
        raise RuntimeError
    assert not trace.is_watching
    assert sent == []


def test_of_a_long_prompt_the_most_used_experts_are_told() -> None:
    sent = list[pb.WorkerMessage]()
    trace = RoutingTrace(list)
    long = Sequence("long", list(range(64)), SamplingParams(max_tokens=4, seed=0), traced=True)
    with trace.of(StepPlan((), (Chunk(long, 0, 64),)), sent.append):
        ids = torch.arange(64 * 8).reshape(64, 8) % 384
        ids[:, 0] = 5
        trace.dispatched(1, ids)
        trace.combined(0.0)
    experts = sent[0].routing.steps[0].layers[0].experts
    assert len(experts) == EXPERTS_MAX
    assert experts[0] == 5
