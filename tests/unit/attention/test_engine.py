"""The engine against the reference model: the same tokens however requests are batched and prompts are cut."""

from pathlib import Path

import pytest
import torch

from moonshard.attention.engine import Engine, Output
from moonshard.attention.sequence import Sequence
from moonshard.model.reference import Reference
from moonshard.sampling import FinishReason, SamplingParams
from tests.unit.attention.attention_engines import make_engine

MAX_TOKENS = 12


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    return Reference.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def prompts(reference: Reference) -> list[list[int]]:
    draw = torch.Generator().manual_seed(5)
    lengths = (1, 2, 3, 7, 16, 17, 33, 70)
    vocabulary = reference.config.vocab_size
    return [torch.randint(0, vocabulary, (n,), generator=draw).tolist() for n in lengths]


@pytest.fixture(scope="module")
def expected(reference: Reference, prompts: list[list[int]]) -> list[list[int]]:
    return [reference.greedy(prompt, MAX_TOKENS) for prompt in prompts]


def engine(reference: Reference, **limits: int) -> Engine:
    return make_engine(reference.decoder, **limits)


def request(name: str, prompt: list[int], **sampling: object) -> Sequence:
    params = {"temperature": 0.0, "max_tokens": MAX_TOKENS, **sampling}
    return Sequence(name, prompt, SamplingParams(**params))  # type: ignore[arg-type]


def run(subject: Engine, limit: int = 500) -> dict[str, list[Output]]:
    """Step until nothing is pending; outputs by request."""
    outputs: dict[str, list[Output]] = {}
    for _ in range(limit):
        plan = subject.plan()
        if not plan.num_tokens:
            return outputs
        for output in subject.step(plan):
            outputs.setdefault(output.request_id, []).append(output)
    raise AssertionError(f"not done after {limit} steps")


def tokens(outputs: list[Output]) -> list[int | None]:
    return [output.token for output in outputs]


@pytest.mark.parametrize("chunk", [1, 5, 16, 512])
def test_a_batch_gives_the_references_tokens_at_any_chunk_size(
    reference: Reference, prompts: list[list[int]], expected: list[list[int]], chunk: int
) -> None:
    subject = engine(reference, prefill_chunk=chunk)
    assert subject.admit([request(str(i), prompt) for i, prompt in enumerate(prompts)]) == []
    outputs = run(subject)
    assert [tokens(outputs[str(i)]) for i in range(len(prompts))] == expected
    assert all(o[-1].finish_reason is FinishReason.LENGTH for o in outputs.values())
    assert subject.scheduler.tables.pool.num_free == 128


def test_sequences_join_and_leave_between_iterations(
    reference: Reference, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    subject = engine(reference)
    outputs: dict[str, list[Output]] = {}
    for number, prompt in enumerate(prompts):
        subject.admit([request(str(number), prompt)])
        for output in subject.step(subject.plan()):
            outputs.setdefault(output.request_id, []).append(output)
    for name, rest in run(subject).items():
        outputs.setdefault(name, []).extend(rest)
    assert [tokens(outputs[str(i)]) for i in range(len(prompts))] == expected


def test_a_context_of_several_segments_is_merged(
    reference: Reference, prompts: list[list[int]], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moonshard.attention.torch_attention.CONTEXT_SEGMENT", 16)
    subject = engine(reference, prefill_chunk=6)
    subject.admit([request("long", prompts[-1])])
    assert tokens(run(subject)["long"]) == expected[-1]


def test_an_aborted_sequence_is_gone_and_the_others_go_on(
    reference: Reference, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    subject = engine(reference)
    subject.admit([request("stays", prompts[3]), request("leaves", prompts[4])])
    first = subject.step(subject.plan())
    subject.abort(["leaves", "unknown"])
    outputs = [o for o in first if o.request_id == "stays"] + run(subject)["stays"]
    assert tokens(outputs) == expected[3]
    assert subject.scheduler.tables.pool.num_free == 128


def test_a_stop_token_ends_the_sequence_and_is_its_last(
    reference: Reference, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    stop = expected[5][4]
    subject = engine(reference)
    subject.admit([request("a", prompts[5], stop_token_ids=(stop,))])
    outputs = run(subject)["a"]
    assert tokens(outputs) == expected[5][: expected[5].index(stop) + 1]
    assert outputs[-1].finish_reason is FinishReason.STOP


def test_a_seed_gives_the_same_tokens_alone_and_in_company(reference: Reference, prompts: list[list[int]]) -> None:
    sampled = {"temperature": 1.0, "top_p": 0.9, "seed": 11}
    alone, crowded = engine(reference), engine(reference, prefill_chunk=7)
    alone.admit([request("a", prompts[4], **sampled)])
    crowded.admit([request("b", prompts[6]), request("a", prompts[4], **sampled), request("c", prompts[2])])
    assert tokens(run(alone)["a"]) == tokens(run(crowded)["a"])


def test_what_does_not_fit_is_refused_and_the_rest_runs(
    reference: Reference, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    subject = engine(reference, num_blocks=4)
    refused = subject.admit([request("big", prompts[-1]), request("fits", prompts[3])])
    assert [(o.request_id, o.error) for o in refused] == [("big", "request: needs 11 KV blocks, this worker has 4")]
    assert tokens(run(subject)["fits"]) == expected[3]


def test_non_finite_logits_fail_their_request_only(
    reference: Reference, prompts: list[list[int]], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = engine(reference)
    subject.admit([request("bad", prompts[2]), request("good", prompts[3])])
    healthy = subject.runner.run

    def poisoned(plan: object) -> torch.Tensor:
        logits = healthy(plan).clone()  # type: ignore[arg-type]
        rows = [c.sequence.request_id for c in plan.chunks if c.samples]  # type: ignore[attr-defined]
        if "bad" in rows:
            logits[rows.index("bad"), 3] = float("nan")
        return logits

    monkeypatch.setattr(subject.runner, "run", poisoned)
    outputs = run(subject)
    assert [o.error for o in outputs["bad"]] == ["non-finite logits at token 3"]
    assert tokens(outputs["good"]) == expected[3]
