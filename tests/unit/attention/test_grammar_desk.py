"""A grammar that takes long to compile holds up its own sequence only."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from moonshard.attention.engine import Engine, Output
from moonshard.attention.grammar_desk import GrammarDesk
from moonshard.attention.orders import obey
from moonshard.grammar import GrammarEngine, GrammarMatcher
from moonshard.model.reference import Reference
from moonshard.rpc.codec import sampling_to_proto
from moonshard.sampling import SamplingParams
from moonshard.tokenizer import load_tokenizer
from moonshard.v1 import control_pb2 as pb
from tests.unit.attention.attention_engines import make_engine

WAIT_S = 20.0
AB = pb.Grammar(text='start: "ab"')


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    return Reference.load(tiny_checkpoint)


class SlowGrammars(GrammarEngine):
    """Compiles when it is told to. begun: somebody waits for that. texts: what was compiled."""

    def __init__(self, checkpoint: Path, reference: Reference) -> None:
        super().__init__(load_tokenizer(checkpoint), reference.config.vocab_size, reference.config.eos_token_ids)
        self.may_go_on = threading.Event()
        self.begun = threading.Event()
        self.texts: list[str] = []

    def matcher(self, text: str) -> GrammarMatcher:
        self.begun.set()
        assert self.may_go_on.wait(WAIT_S)
        self.texts.append(text)
        return super().matcher(text)


@pytest.fixture
def grammars(tiny_checkpoint: Path, reference: Reference) -> SlowGrammars:
    return SlowGrammars(tiny_checkpoint, reference)


@pytest.fixture
def engine(reference: Reference) -> Engine:
    return make_engine(reference.decoder, max_num_seqs=8)


class Desk(GrammarDesk):
    """done: set after each compiled grammar."""

    def __init__(self, grammars: GrammarEngine, engine: Engine) -> None:
        self.done = threading.Event()
        super().__init__(grammars, self.done.set, engine.scheduler.runs)


@pytest.fixture
def desk(engine: Engine, grammars: SlowGrammars) -> Iterator[Desk]:
    made = Desk(grammars, engine)
    yield made
    grammars.may_go_on.set()
    made.close()


def admit(name: str, grammar: pb.Grammar | None = None, output: tuple[int, ...] = ()) -> pb.RouterMessage:
    sampling = sampling_to_proto(SamplingParams(temperature=0, max_tokens=50, seed=1))
    sequence = pb.Sequence(
        request_id=name, prompt_token_ids=[5, 6, 7], sampling=sampling, grammar=grammar, output_token_ids=output
    )
    return pb.RouterMessage(admit=pb.Admit(sequences=[sequence]))


def abort(*names: str) -> pb.RouterMessage:
    return pb.RouterMessage(abort=pb.Abort(request_ids=names))


def step(engine: Engine) -> dict[str, int | None]:
    """Who said which token."""
    return {output.request_id: output.token for output in engine.step(engine.plan())}


def test_others_say_their_tokens_while_a_grammar_is_compiled(
    engine: Engine, desk: Desk, grammars: SlowGrammars
) -> None:
    obey(engine, desk, [admit("bound", AB), admit("free")])
    assert grammars.begun.wait(WAIT_S)
    for _ in range(5):
        assert set(step(engine)) == {"free"}
        obey(engine, desk, [])
    obey(engine, desk, [admit("later")])
    assert set(step(engine)) == {"free", "later"}
    grammars.may_go_on.set()
    assert desk.done.wait(WAIT_S)
    obey(engine, desk, [])
    said = [step(engine)["bound"], step(engine)["bound"]]
    assert said in ([ord("a"), ord("b")], [said[0], engine.runner.decoder.config.eos_token_ids[0]])


def test_alone_it_leaves_nothing_to_do_until_it_is_ready(engine: Engine, desk: Desk, grammars: SlowGrammars) -> None:
    obey(engine, desk, [admit("bound", AB)])
    assert not engine.scheduler.has_work
    assert engine.plan().num_tokens == 0
    assert engine.scheduler.num_running == 1
    grammars.may_go_on.set()
    assert desk.done.wait(WAIT_S)
    obey(engine, desk, [])
    assert engine.scheduler.has_work
    assert set(step(engine)) == {"bound"}


def test_a_known_grammar_waits_for_nothing(engine: Engine, desk: Desk, grammars: SlowGrammars) -> None:
    grammars.may_go_on.set()
    obey(engine, desk, [admit("first", AB)])
    assert desk.done.wait(WAIT_S)
    grammars.may_go_on.clear()
    obey(engine, desk, [admit("second", AB)])
    assert set(step(engine)) == {"first", "second"}


def test_who_left_is_not_compiled_for(engine: Engine, desk: Desk, grammars: SlowGrammars) -> None:
    obey(engine, desk, [admit("a", AB)])
    assert grammars.begun.wait(WAIT_S)
    for number in range(100):
        name = f"n{number}"
        obey(engine, desk, [admit(name, pb.Grammar(text=f'start: "x{number}"')), abort(name)])
    obey(engine, desk, [abort("a"), admit("last", pb.Grammar(text='start: "b"'))])
    assert desk.num_waiting <= engine.scheduler.limits.max_num_seqs
    grammars.may_go_on.set()
    found: dict[str, int | None] = {}
    while "last" not in found:
        assert desk.done.wait(WAIT_S)
        desk.done.clear()
        assert obey(engine, desk, []) == []
        found = step(engine) if engine.scheduler.has_work else {}
    assert grammars.texts == ['start: "ab"', 'start: "b"']


def test_what_there_is_of_an_output_must_fit(engine: Engine, desk: Desk, grammars: SlowGrammars) -> None:
    """A sequence that comes back from elsewhere goes on in the middle of its grammar."""
    grammars.may_go_on.set()
    obey(engine, desk, [admit("fits", AB, (ord("a"),)), admit("does-not", AB, (ord("z"),))])
    found: list[Output] = []
    while len(found) < 1 or not engine.scheduler.has_work:
        assert desk.done.wait(WAIT_S)
        desk.done.clear()
        found += obey(engine, desk, [])
    assert [(output.request_id, output.error.partition(":")[0]) for output in found] == [("does-not", "constraint")]
    assert step(engine) == {"fits": ord("b")}
