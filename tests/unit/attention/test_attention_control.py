"""The attention worker's side of the control stream: orders in, outputs, credits and cache events out."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moonshard.attention.engine import Engine, Output
from moonshard.attention.grammar_desk import GrammarDesk
from moonshard.attention.guide import Guide
from moonshard.attention.orders import obey
from moonshard.attention.report import Report
from moonshard.attention.wire import outputs_message, sequence_from_proto
from moonshard.errors import ProtocolMismatch, RequestError
from moonshard.grammar import GrammarEngine
from moonshard.model.reference import Reference
from moonshard.rpc.codec import logprobs_from_proto, sampling_to_proto
from moonshard.sampling import FinishReason, SamplingParams, TokenLogprobs
from moonshard.tokenizer import load_tokenizer
from moonshard.v1 import control_pb2 as pb
from moonshard.v1 import inference_pb2
from tests.unit.attention.attention_engines import make_engine


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    return Reference.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def grammars(tiny_checkpoint: Path, reference: Reference) -> GrammarEngine:
    return GrammarEngine(load_tokenizer(tiny_checkpoint), reference.config.vocab_size, reference.config.eos_token_ids)


@pytest.fixture
def engine(reference: Reference) -> Engine:
    return make_engine(reference.decoder, block_size=4, num_blocks=8, max_num_seqs=2)


@pytest.fixture
def desk(engine: Engine, grammars: GrammarEngine) -> Iterator["Desk"]:
    made = Desk(grammars, engine)
    yield made
    made.close()


class Desk(GrammarDesk):
    """done: set after each compiled grammar."""

    def __init__(self, grammars: GrammarEngine, engine: Engine) -> None:
        self.done = threading.Event()
        super().__init__(grammars, self.done.set, engine.scheduler.runs)


def asked(name: str = "a", length: int = 6, output: tuple[int, ...] = (), grammar: Any = None) -> pb.Sequence:
    sampling = sampling_to_proto(SamplingParams(temperature=0, max_tokens=4, seed=1))
    prompt = [ord(name) + at for at in range(length)]
    return pb.Sequence(
        request_id=name, prompt_token_ids=prompt, sampling=sampling, output_token_ids=output, grammar=grammar
    )


def admit(*sequences: pb.Sequence) -> pb.RouterMessage:
    return pb.RouterMessage(admit=pb.Admit(sequences=sequences))


def step(engine: Engine) -> list[Output]:
    return engine.step(engine.plan())


class Sent(list[pb.WorkerMessage]):
    """What a report sent, and the last credits in it."""

    @property
    def free(self) -> tuple[int, int, int, int]:
        free = next(m for m in reversed(self) if m.HasField("outputs")).outputs.free
        return free.num_free_blocks, free.num_free_seqs, free.num_admitted, free.num_pending_tokens


def test_a_sequence_comes_with_its_output_and_its_grammar(grammars: GrammarEngine) -> None:
    message = asked(output=(7,), grammar=pb.Grammar(text='start: "ab"', after_token_id=7))
    found = sequence_from_proto(message)
    assert (found.tokens, found.num_generated, found.sampling.max_tokens) == ([97, 98, 99, 100, 101, 102, 7], 1, 4)
    assert found.awaits_grammar
    found.follow(Guide(grammars.matcher('start: "ab"'), 7))
    assert found.guide
    allowed = found.guide.allowed(2048)
    assert allowed is not None
    assert allowed[ord("a")]
    assert not allowed[ord("b")]
    assert not sequence_from_proto(asked()).awaits_grammar
    with pytest.raises(RequestError, match="constraint"):
        sequence_from_proto(message).follow(Guide(grammars.matcher('start: "ab"')))


def test_a_broken_grammar_is_an_answer_and_counts_as_admitted(engine: Engine, desk: Desk) -> None:
    assert obey(engine, desk, [admit(asked("a", grammar=pb.Grammar(text="start: (")), asked("b"))]) == []
    assert (engine.num_admitted, engine.scheduler.num_running) == (2, 2)
    assert desk.done.wait(10)
    outputs = obey(engine, desk, [])
    assert [(o.request_id, o.error.partition(":")[0]) for o in outputs] == [("a", "constraint")]
    assert (engine.num_admitted, engine.scheduler.num_running) == (2, 1)


def test_what_has_no_place_now_is_told_as_preempted(engine: Engine, desk: Desk) -> None:
    outputs = obey(engine, desk, [admit(asked("a", 16), asked("b", 20), asked("c", 4), asked("d", 4))])
    assert [(o.request_id, o.preempted) for o in outputs] == [("b", True), ("d", True)]
    assert engine.num_admitted == 4


def test_credits_tell_what_is_free_and_how_far_the_orders_are_done(engine: Engine, desk: Desk) -> None:
    sent = Sent()
    report = Report(engine, sent.append)
    report.send([])
    assert sent == []
    report.send(obey(engine, desk, [admit(asked("a", 6), asked("b", 9))]))
    assert sent.free == (3, 0, 2, 15)
    report.send(step(engine))
    assert [o.request_id for o in sent[-1].outputs.outputs] == ["a", "b"]
    assert sent.free == (3, 0, 2, 0)


def test_an_abort_between_iterations_frees_and_tells(engine: Engine, desk: Desk) -> None:
    obey(engine, desk, [admit(asked("a"))])
    sent = Sent()
    report = Report(engine, sent.append)
    report.send(obey(engine, desk, [pb.RouterMessage(abort=pb.Abort(request_ids=["a", "gone"]))]))
    assert sent.free == (8, 2, 1, 0)
    assert engine.plan().num_tokens == 0
    report.send([])
    assert len(sent) == 1


def test_cache_events_go_before_the_outputs_they_belong_to(engine: Engine, desk: Desk) -> None:
    sent = Sent()
    report = Report(engine, sent.append)
    obey(engine, desk, [admit(asked("a", 9))])
    report.send(step(engine))
    assert [message.WhichOneof("body") for message in sent] == ["kv_events", "outputs"]
    stored = [event.stored for event in sent[0].kv_events.events]
    assert [list(block.token_ids) for block in stored] == [[97, 98, 99, 100], [101, 102, 103, 104]]
    assert not stored[0].HasField("parent")
    assert stored[1].parent == stored[0].hash
    obey(engine, desk, [pb.RouterMessage(abort=pb.Abort(request_ids=["a"]))])
    report.send(obey(engine, desk, [pb.RouterMessage(flush_cache=pb.FlushCache())]))
    events = [message for message in sent if message.HasField("kv_events")][-1].kv_events.events
    assert [event.WhichOneof("body") for event in events] == ["removed", "removed", "cleared"]
    assert {event.removed for event in events[:2]} == {block.hash for block in stored}


def test_outputs_carry_all_that_was_asked() -> None:
    scored = TokenLogprobs(5, -0.5, ((5, -0.5), (6, -1.5)))
    output = Output("a", 5, FinishReason.STOP, "", False, 5, 16, scored, (scored, scored))
    message = outputs_message([output, Output("b", preempted=True)], pb.FreeCredits(num_free_blocks=3)).outputs
    first, second = message.outputs
    assert (list(first.token_ids), first.stop_token_id, first.num_cached_tokens) == ([5], 5, 16)
    assert first.finish_reason == inference_pb2.FINISH_REASON_STOP
    assert [logprobs_from_proto(found) for found in (*first.logprobs, *first.prompt_logprobs)] == [scored] * 3
    assert second.preempted
    assert not second.token_ids
    assert message.free.num_free_blocks == 3


def test_an_order_that_is_none_is_a_mismatch(engine: Engine, desk: Desk) -> None:
    with pytest.raises(ProtocolMismatch, match="the router sent 'welcome'"):
        obey(engine, desk, [pb.RouterMessage(welcome=pb.Welcome())])
