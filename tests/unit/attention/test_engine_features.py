"""What requests may ask of the engine, on the reference model: logprobs, grammars, preemption, shared prompts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from llguidance import LLMatcher

from moonshard.attention.sequence import Sequence
from moonshard.errors import RequestError
from moonshard.grammar import GrammarEngine
from moonshard.model.reference import Reference
from moonshard.sampling import FinishReason, SamplingParams
from moonshard.tokenizer import Tokenizer, load_tokenizer
from tests.unit.attention.attention_engines import Asked, make_engine, serve

SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": [1, 20, 333]}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    return Reference.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return load_tokenizer(tiny_checkpoint)


@pytest.fixture(scope="module")
def grammars(reference: Reference, tokenizer: Tokenizer) -> GrammarEngine:
    return GrammarEngine(tokenizer, reference.config.vocab_size, reference.config.eos_token_ids)


def prompt(length: int, seed: int = 5) -> list[int]:
    return torch.randint(0, 1792, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def random_mixture(count: int) -> list[Asked]:
    """Requests that use everything that has a memory of the output."""
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 1.3, "top_p": 0.9, "seed": 7},
        {"frequency_penalty": 1.0, "repetition_penalty": 1.2},
        {"temperature": 1.0, "seed": 8, "presence_penalty": 0.5, "logprobs": 2, "min_tokens": 3},
    ]
    return [Asked.of(str(n), prompt(3 + 5 * n, seed=n), 24, **kinds[n % len(kinds)]) for n in range(count)]


def test_preempted_sequences_go_on_as_if_nothing_had_been(reference: Reference) -> None:
    alone, crowded = random_mixture(8), random_mixture(8)
    for request in alone:
        serve(make_engine(reference.decoder), [request])
    subject = make_engine(reference.decoder, num_blocks=10, prefill_chunk=16)
    serve(subject, crowded)
    assert sum(request.num_preempted for request in crowded) > 3
    assert [request.tokens for request in crowded] == [request.tokens for request in alone]
    assert subject.scheduler.tables.pool.num_free == 10


def test_a_shared_beginning_comes_from_the_cache_and_changes_nothing(reference: Reference) -> None:
    beginning = prompt(40)
    subject = make_engine(reference.decoder)
    requests = [Asked.of(str(n), beginning + prompt(5, seed=n)) for n in range(6)]
    serve(subject, requests[:1])
    serve(subject, requests[1:])
    assert [request.num_cached_tokens for request in requests] == [0, 40, 40, 40, 40, 40]
    for request in requests:
        assert request.tokens == reference.greedy(request.prompt, 12)


def test_those_who_begin_alike_at_once_share_too(reference: Reference) -> None:
    beginning = prompt(40)
    requests = [Asked.of(str(n), beginning + prompt(5, seed=n)) for n in range(6)]
    subject = make_engine(reference.decoder, prefill_chunk=16)
    serve(subject, requests)
    assert subject.num_prompt_tokens < 2 * 45 + 5 * 8
    assert sorted(request.num_cached_tokens for request in requests)[1] == 40
    for request in requests:
        assert request.tokens == reference.greedy(request.prompt, 12)


def test_logprobs_are_the_references(reference: Reference) -> None:
    request = Asked.of("a", prompt(9), logprobs=3)
    serve(make_engine(reference.decoder), [request])
    expected = reference.logits(request.prompt + request.tokens[:-1])[8:].log_softmax(-1)
    for row, token, found in zip(expected, request.tokens, request.logprobs, strict=True):
        assert found is not None
        assert found.token_id == token
        assert found.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [top for top, _ in found.top] == row.topk(3).indices.tolist()


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_prompt_logprobs_are_the_references_whatever_is_cached(reference: Reference, chunk: int) -> None:
    tokens = prompt(40)
    subject = make_engine(reference.decoder, prefill_chunk=chunk)
    serve(subject, [Asked.of("before", tokens)])
    request = Asked.of("a", tokens, prompt_logprobs=2)
    serve(subject, [request, Asked.of("beside", prompt(20, seed=2))])
    expected = reference.logits(tokens).log_softmax(-1)
    assert [found.token_id for found in request.prompt_logprobs] == tokens[1:]
    for row, token, found in zip(expected, tokens[1:], request.prompt_logprobs, strict=False):
        assert found.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [top for top, _ in found.top] == row.topk(2).indices.tolist()
    assert request.num_cached_tokens == 0


def test_prompt_logprobs_come_once_even_when_preempted_before(reference: Reference) -> None:
    requests = [Asked.of(str(n), prompt(17, seed=n), 20, prompt_logprobs=0) for n in range(4)]
    serve(make_engine(reference.decoder, num_blocks=9, prefill_chunk=5), requests)
    assert sum(request.num_preempted for request in requests) > 0
    assert [len(request.prompt_logprobs) for request in requests] == [16] * 4


def constrained(name: str, grammar: str, after: int | None = None, **params: Any) -> Asked:
    request = Asked.of(name, prompt(6), 60, temperature=1.0, seed=3, stop_token_ids=(1794,), **params)
    request.grammar = (grammar, after)
    return request


def test_a_schema_holds_whatever_the_weights(
    reference: Reference, grammars: GrammarEngine, tokenizer: Tokenizer
) -> None:
    request = constrained("a", LLMatcher.grammar_from_json_schema(SCHEMA))
    serve(make_engine(reference.decoder), [request], grammars)
    assert request.tokens[-1] in (1793, 1794)
    assert json.loads(tokenizer.decode(request.tokens[:-1]))["n"] in (1, 20, 333)
    assert request.last
    assert request.last.finish_reason is FinishReason.STOP
    assert request.last.stop_token_id == request.tokens[-1]


def test_a_grammar_waits_for_the_end_of_the_thought(
    reference: Reference, grammars: GrammarEngine, tokenizer: Tokenizer
) -> None:
    end = tokenizer.special("</think>")
    assert end is not None
    request = constrained("a", 'start: "yes" | "no"', end, logit_bias=((end, 6.5),))
    serve(make_engine(reference.decoder), [request], grammars)
    place = request.tokens.index(end)
    assert place > 0
    assert tokenizer.decode(request.tokens[place + 1 : -1]) in ("yes", "no")


def test_a_grammar_goes_on_where_a_preempted_sequence_was(reference: Reference, grammars: GrammarEngine) -> None:
    schema = LLMatcher.grammar_from_json_schema({"type": "array", "items": {"enum": ["tea", 7]}, "minItems": 9})
    alone = constrained("c", schema, logprobs=0)
    crowd = [Asked.of("a", prompt(30), 40), Asked.of("b", prompt(30, 9), 40), alone.again("c")]
    serve(make_engine(reference.decoder), [alone], grammars)
    serve(make_engine(reference.decoder, num_blocks=15), crowd, grammars)
    assert crowd[2].num_preempted > 0
    assert crowd[2].tokens == alone.tokens


def test_where_a_grammar_ends_the_output_ends_though_more_was_asked(
    reference: Reference, grammars: GrammarEngine, tokenizer: Tokenizer
) -> None:
    request = constrained("a", 'start: "tea"', min_tokens=40)
    request.sampling = SamplingParams(temperature=0, max_tokens=60, min_tokens=40)  # no stop ids: ignore_eos
    serve(make_engine(reference.decoder), [request], grammars)
    assert tokenizer.decode(request.tokens[:-1]) == "tea"
    assert request.last
    assert request.last.finish_reason is FinishReason.STOP


def test_output_that_breaks_its_grammar_is_refused(grammars: GrammarEngine, tokenizer: Tokenizer) -> None:
    request = constrained("a", 'start: "tea"')
    request.tokens = tokenizer.encode("coffee", allow_special=False)
    with pytest.raises(RequestError, match="constraint"):
        request.sequence(grammars)


@pytest.mark.parametrize(
    ("prompt_ids", "output", "params", "problem"),
    [
        ([1, 2048], [], {}, "prompt_token_ids: token ids must be in 0..2047, got 2048"),
        ([1], [-1], {}, "output_token_ids: token ids must be in 0..2047, got -1"),
        ([1], [], {"stop_token_ids": (5000,)}, "stop_token_ids: token ids must be in 0..2047, got 5000"),
        ([1], [], {"logit_bias": ((3000, 1.0),)}, "logit_bias: token ids must be in 0..2047, got 3000"),
    ],
)
def test_ids_outside_the_vocabulary_are_refused_by_name(
    reference: Reference, prompt_ids: list[int], output: list[int], params: dict[str, Any], problem: str
) -> None:
    subject = make_engine(reference.decoder)
    refused = subject.admit([Sequence("a", prompt_ids, SamplingParams(max_tokens=4, **params), output)])
    assert [o.error for o in refused] == [problem]
    assert subject.num_admitted == 1


def test_what_led_to_non_finite_logits_is_not_shared(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = make_engine(reference.decoder)
    healthy = subject.runner.run
    with monkeypatch.context() as patch:
        patch.setattr(subject.runner, "run", lambda plan: healthy(plan) * float("nan"))
        subject.admit([Sequence("bad", prompt(20), SamplingParams(temperature=0, max_tokens=4))])
        assert [o.error for o in subject.step(subject.plan())] == ["non-finite logits at token 20"]
    request = Asked.of("good", prompt(20))
    serve(subject, [request])
    assert request.num_cached_tokens == 0
    assert request.tokens == reference.greedy(request.prompt, 12)
