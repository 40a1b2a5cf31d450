"""Tokens that ran without all of their experts: counted, told with the next output, and kept out of others' reach."""

from pathlib import Path

import pytest

from moonshard.attention.engine import Engine, Output
from moonshard.model.reference import Reference
from tests.unit.attention.attention_engines import Asked, make_engine, serve

PROMPT = list(range(40, 60))


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    return Reference.load(tiny_checkpoint)


@pytest.fixture
def rows() -> set[int]:
    """Of every step, those that lack an expert."""
    return set()


@pytest.fixture
def engine(reference: Reference, rows: set[int]) -> Engine:
    made = make_engine(reference.decoder)
    return Engine(made.scheduler, made.runner, lambda: rows)


def _step(engine: Engine) -> dict[str, Output]:
    return {output.request_id: output for output in engine.step(engine.plan())}


def test_each_sequence_hears_of_its_own(engine: Engine, rows: set[int]) -> None:
    engine.admit([Asked.of("a", PROMPT[:3]).sequence(None), Asked.of("b", [9] * 5).sequence(None)])
    rows |= {2, 3, 4}  # the last of a's prompt, the first two of b's
    assert {name: output.num_degraded for name, output in _step(engine).items()} == {"a": 1, "b": 2}
    rows.clear()
    assert {name: output.num_degraded for name, output in _step(engine).items()} == {"a": 0, "b": 0}
    rows |= {0}
    assert sum(output.num_degraded for output in _step(engine).values()) == 1
    assert engine.num_degraded_tokens == 4


def test_a_prompt_in_chunks_is_told_with_its_first_output(reference: Reference) -> None:
    made = make_engine(reference.decoder, prefill_chunk=8)
    engine = Engine(made.scheduler, made.runner, lambda: {0})
    engine.admit([Asked.of("a", PROMPT).sequence(None)])
    outputs = [output for _ in range(3) for output in engine.step(engine.plan())]
    assert [output.num_degraded for output in outputs] == [3]


def test_nobody_else_reads_what_lacks_experts(engine: Engine, rows: set[int]) -> None:
    rows |= {10}
    first, second, third = (Asked.of(name, PROMPT, 3) for name in "abc")
    serve(engine, [first])
    rows.clear()
    serve(engine, [second])
    assert second.num_cached_tokens == 0
    serve(engine, [third])
    assert third.num_cached_tokens == 16
    assert third.tokens == second.tokens


def test_those_who_wait_for_a_common_beginning_do_not_wait_for_one_that_lacks_experts(
    reference: Reference,
) -> None:
    made = make_engine(reference.decoder, prefill_chunk=8)
    rows = {0}
    engine = Engine(made.scheduler, made.runner, lambda: rows)
    asked = [Asked.of(name, PROMPT, 3) for name in "ab"]
    engine.admit([it.sequence(None) for it in asked])
    engine.step(engine.plan())  # a's first chunk lacks experts, b waited for it
    rows.clear()
    outputs: list[Output] = []
    while (plan := engine.plan()).num_tokens:
        outputs += engine.step(plan)
    last = {output.request_id: output for output in outputs if output.finish_reason}
    assert set(last) == {"a", "b"}
    told = {name: sum(it.num_degraded for it in outputs if it.request_id == name) for name in "ab"}
    assert told == {"a": 1, "b": 0}
