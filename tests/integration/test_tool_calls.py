"""Constrained chat on a real cell: random weights say what the schemas allow, every time."""

import json
from typing import Any

import jsonschema
import pytest

from moonshard.tokenizer import Tokenizer, load_tokenizer
from moonshard.v1 import inference_pb2 as pb
from moonshard_cluster.client import Client
from moonshard_cluster.local.supervisor import LocalCluster
from tests.integration.cells import ANSWER_S

USER = pb.Message(role="user", content="What is the weather?")
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "unit": {"enum": ["c", "f", None]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "hours": {"type": "array", "items": {"enum": [6, 12, 18]}, "maxItems": 3},
        "place": {
            "type": "object",
            "properties": {"indoors": {"type": "boolean"}},
            "required": ["indoors"],
            "additionalProperties": False,
        },
    },
    "required": ["city", "days", "place"],
    "additionalProperties": False,
}
TIME: dict[str, Any] = {"properties": {"zone": {"enum": ["utc", "local"]}}, "additionalProperties": False}
SCHEMAS = {"get_weather": WEATHER, "get-time.v2": TIME}
TOOLS = [pb.Tool(name=name, parameters=json.dumps(schema)) for name, schema in SCHEMAS.items()]
CHOICES = 16
SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"


@pytest.fixture(scope="module")
def tokenizer(shared_cell: tuple[LocalCluster, Client]) -> Tokenizer:
    return load_tokenizer(shared_cell[0].config.checkpoint)


def replies(client: Client, request: pb.ChatRequest) -> list[list[pb.ChatResponse]]:
    """The responses of every choice."""
    found: list[list[pb.ChatResponse]] = [[] for _ in range(request.sampling.n)]
    for response in client.chat(request, ANSWER_S):
        found[response.choice].append(response)
    return found


def calls_of(reply: list[pb.ChatResponse]) -> list[tuple[str, str, Any]]:
    """Id, name and arguments of each call."""
    calls: list[tuple[str, str, str]] = []
    for piece in (piece for response in reply for piece in response.tool_calls):
        if piece.index == len(calls):
            calls.append((piece.id, piece.name, piece.arguments))
        else:
            id_, name, arguments = calls[piece.index]
            calls[piece.index] = (id_, name, arguments + piece.arguments)
    return [(id_, name, json.loads(arguments)) for id_, name, arguments in calls]


@pytest.mark.parametrize(
    ("choice", "thinking"),
    [
        (pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED), False),
        (pb.ToolChoice(name="get_weather"), True),
        (pb.ToolChoice(), False),
    ],
)
def test_every_call_follows_its_schema(
    client: Client, tokenizer: Tokenizer, choice: pb.ToolChoice, thinking: bool
) -> None:
    """Random weights rarely open or close a section on their own: where it is theirs to choose, a bias does it."""
    bias = dict.fromkeys(map(tokenizer.special_tokens.__getitem__, (SECTION, SECTION_END)), 100.0)
    sampling = pb.SamplingParams(n=CHOICES, seed=3, max_tokens=300, logit_bias=bias)
    request = pb.ChatRequest(messages=[USER], tools=TOOLS, tool_choice=choice, thinking=thinking, sampling=sampling)
    for reply in replies(client, request):
        calls = calls_of(reply)
        assert calls
        for index, (id_, name, arguments) in enumerate(calls):
            assert id_ == f"functions.{name}:{index}"
            jsonschema.validate(arguments, SCHEMAS[name])
        assert not choice.name or [name for _, name, _ in calls] == [choice.name]
        assert reply[-1].finish.reason == pb.FINISH_REASON_TOOL_CALLS
        assert "".join(response.content for response in reply) == ""


def test_a_schema_binds_what_follows_the_thought(client: Client, tokenizer: Tokenizer) -> None:
    end = tokenizer.special_tokens["</think>"]
    constraint = pb.Constraint(json_schema=json.dumps(WEATHER))
    sampling = pb.SamplingParams(n=4, seed=1, max_tokens=400, logit_bias={end: 100.0}, constraint=constraint)
    for reply in replies(client, pb.ChatRequest(messages=[USER], sampling=sampling)):
        jsonschema.validate(json.loads("".join(response.content for response in reply)), WEATHER)
        assert reply[-1].finish.usage.reasoning_tokens == 0
        assert reply[-1].finish.reason == pb.FINISH_REASON_STOP


def test_no_call_is_made_where_none_is_wanted(client: Client) -> None:
    none = pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE)
    sampling = pb.SamplingParams(n=4, seed=1, max_tokens=40)
    for reply in replies(client, pb.ChatRequest(messages=[USER], tools=TOOLS, tool_choice=none, sampling=sampling)):
        assert calls_of(reply) == []
