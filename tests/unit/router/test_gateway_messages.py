"""Messages of the gateways' protocol to domain values and back, and the grammars for declared tools."""

import json
from typing import Any

import pytest
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from moonshard.errors import RequestError
from moonshard.router.chat.tool_choice import Mode, ToolChoice
from moonshard.router.chat.tools import Tool
from moonshard.router.gateway.declared_tools import choice_of
from moonshard.router.gateway.prompts import Prompt
from moonshard.router.gateway.responses import Responses
from moonshard.router.gateway.sampling import sampling_of
from moonshard.router.output import ChoiceDelta
from moonshard.router.requests import Finish, Timings
from moonshard.sampling import Constraint, ConstraintKind, FinishReason, SamplingParams, TokenLogprobs

DEFAULTS = SamplingParams(temperature=0.6, top_p=0.9)


def test_unset_numbers_take_the_defaults() -> None:
    assert sampling_of(pb.SamplingParams(), DEFAULTS) == DEFAULTS
    assert sampling_of(pb.SamplingParams(temperature=0.0, top_p=1.0), DEFAULTS).temperature == 0.0


def test_every_parameter_arrives() -> None:
    message = pb.SamplingParams(
        temperature=0.5, top_p=0.5, top_k=4, min_p=0.25, frequency_penalty=0.5, presence_penalty=-0.5,
        repetition_penalty=1.5, max_tokens=7, min_tokens=2, stop=["a"], stop_token_ids=[9], ignore_eos=True, n=3,
        logprobs=2, prompt_logprobs=1, seed=-1, include_stop_str_in_output=True, logit_bias={5: 1.0},
    )  # fmt: skip
    assert sampling_of(message, DEFAULTS) == SamplingParams(
        temperature=0.5, top_p=0.5, top_k=4, min_p=0.25, frequency_penalty=0.5, presence_penalty=-0.5,
        repetition_penalty=1.5, max_tokens=7, min_tokens=2, stop=("a",), stop_token_ids=(9,), ignore_eos=True, n=3,
        logprobs=2, prompt_logprobs=1, seed=2**64 - 1, include_stop=True, logit_bias=((5, 1.0),),
    )  # fmt: skip


def test_all_log_probabilities_are_refused_by_name() -> None:
    with pytest.raises(RequestError, match=r"logprobs: must be in 0\.\.20, got -1"):
        sampling_of(pb.SamplingParams(logprobs=-1), DEFAULTS)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("json_schema", "{}", Constraint(ConstraintKind.JSON_SCHEMA, "{}")),
        ("regex", "a+", Constraint(ConstraintKind.REGEX, "a+")),
        ("grammar", "root ::= 'a'", Constraint(ConstraintKind.EBNF, "root ::= 'a'")),
        ("structural_tag", "{}", Constraint(ConstraintKind.STRUCTURAL_TAG, "{}")),
        ("json_object", True, Constraint(ConstraintKind.JSON_OBJECT)),
        ("json_object", False, None),
        ("choice", pb.ChoiceConstraint(choices=["a", "b"]), Constraint(ConstraintKind.CHOICE, choices=("a", "b"))),
    ],
)
def test_constraints(field: str, value: Any, expected: Constraint | None) -> None:
    assert sampling_of(pb.SamplingParams(**{field: value}), DEFAULTS).constraint == expected


def _finish(stop_token_id: int | None = None, stop_text: str | None = None) -> Finish:
    return Finish(FinishReason.STOP, stop_token_id, 2, 3, Timings(0, 0, 0), num_cached_tokens=1, stop_text=stop_text)


LOGPROBS = (TokenLogprobs(7, -0.5, ((7, -0.5), (8, -1.0))),)


def test_a_stream_is_chunks_and_a_closing_message_for_each_choice() -> None:
    responses = Responses((1, 2), is_stream=True, stop_token_ids=())
    (chunk,) = responses.of(ChoiceDelta(1, (7,), "x", LOGPROBS, (TokenLogprobs(2, -3.0),)))
    assert list(chunk.chunk.token_ids) == [7]
    assert chunk.chunk.index == 1
    assert list(chunk.chunk.output_logprobs.top_logprobs[0].token_ids) == [7, 8]
    assert not chunk.chunk.input_logprobs.token_logprobs[0].HasField("value")
    assert list(chunk.chunk.input_logprobs.token_ids) == [1, 2]
    last, complete = responses.of(ChoiceDelta(1, (8, 9), "y", (), (), _finish(9)))
    assert last.chunk.completion_tokens == 3
    assert list(complete.complete.output_ids) == [7, 8, 9]
    assert complete.complete.cached_tokens == 1
    assert complete.complete.WhichOneof("matched_stop") is None


def test_without_a_stream_only_the_closing_message_comes() -> None:
    responses = Responses((1, 2), is_stream=False, stop_token_ids=(9,))
    assert list(responses.of(ChoiceDelta(0, (7,), "x", LOGPROBS))) == []
    (complete,) = responses.of(ChoiceDelta(0, (9,), "", LOGPROBS, (), _finish(9)))
    assert list(complete.complete.output_logprobs.token_logprobs) == [-0.5, -0.5]
    assert complete.complete.matched_token_id == 9
    assert complete.complete.finish_reason == "stop"


def test_a_stop_text_is_told() -> None:
    (complete,) = Responses((1,), False, ()).of(ChoiceDelta(0, (7,), "x", (), (), _finish(stop_text="END")))
    assert complete.complete.matched_stop_str == "END"


TOOLS = json.dumps([{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("a", "b")])
AUTO, REQUIRED = ToolChoice(Mode.AUTO), ToolChoice(Mode.REQUIRED)


def _prompt(tools: str = TOOLS, opens_thought: bool = False) -> Prompt:
    return Prompt([1], opens_thought, not opens_thought, tools)


def test_declared_tools_leave_calls_to_the_model() -> None:
    assert choice_of(_prompt(), None) == ([Tool("a", "", {}), Tool("b", "", {})], AUTO)
    odd = json.dumps([{"function": {"name": "c", "parameters": "?"}}, {"function": {"name": 3}}, 4])
    assert choice_of(_prompt(odd), None) == ([Tool("c")], AUTO)


def test_forced_calls_are_of_the_named_tools() -> None:
    asked = Constraint(ConstraintKind.STRUCTURAL_TAG, '"<|tool_calls_section_begin|><|tool_call_begin|>functions.b:0"')
    assert choice_of(_prompt(), asked) == ([Tool("b", "", {})], REQUIRED)
    assert choice_of(_prompt(""), asked) is None


@pytest.mark.parametrize("tools", ["", "not json", "[]", "[1]", '{"a": 1}', '[{"type": "function"}]', "[" * 100_000])
def test_nothing_is_bound_without_tools(tools: str) -> None:
    assert choice_of(_prompt(tools), None) is None


def test_other_constraints_stay_as_they_are() -> None:
    assert choice_of(_prompt(), Constraint(ConstraintKind.REGEX, "a")) is None
    assert choice_of(_prompt(), Constraint(ConstraintKind.STRUCTURAL_TAG, "{}")) is None
