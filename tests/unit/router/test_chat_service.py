"""Chat through a real server: reasoning, content and tool calls as fields, with a worker that says what it is told."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from moonshard.v1 import control_pb2 as control
from moonshard.v1 import inference_pb2 as pb
from tests.unit.router.router_peers import (
    END_OF_TURN,
    SPECIALS,
    PeerCell,
    byte_tokenizer,
    collect,
    ready_cell,
    run,
    small_config,
)

SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
USER = pb.Message(role="user", content="yo")
LOOK = pb.Tool(name="look", parameters='{"type": "object", "properties": {"at": {"type": "string"}}}')
AT_SKY = '{"at": "sky"}'


def call(name: str = "look", arguments: str = AT_SKY) -> str:
    return f"<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"


def ids_of(text: str) -> list[int]:
    return byte_tokenizer().encode(text, allow_special=True)


def serve(tmp_path: Path, test: Callable[[PeerCell], Awaitable[None]], **values: Any) -> None:
    async def limited() -> None:
        async with ready_cell(small_config(tmp_path, **values), num_blocks=32) as cell:
            await test(cell)

    run(limited)


async def exchange(
    cell: PeerCell, request: pb.ChatRequest, reply: str, reason: pb.FinishReason.ValueType = pb.FINISH_REASON_STOP
) -> tuple[control.Sequence, list[pb.ChatResponse]]:
    """One Chat call whose worker says the reply, token by token. What it was asked, and what the caller got."""
    answering = asyncio.create_task(collect(cell.inference.Chat(request)))
    (sequence,) = (await cell.attention[0].next("admit")).sequences
    for token in ids_of(reply):
        await cell.attention[0].output(sequence.request_id, [token])
    if reason == pb.FINISH_REASON_STOP:
        await cell.attention[0].finish(sequence.request_id)
    else:
        await cell.attention[0].output(sequence.request_id, [], finish_reason=reason)
    return sequence, await answering


def joined(responses: list[pb.ChatResponse]) -> tuple[str, str]:
    return "".join(r.reasoning_content for r in responses), "".join(r.content for r in responses)


def test_reasoning_and_content_come_apart(tmp_path: Path) -> None:
    async def test(cell: PeerCell) -> None:
        _, responses = await exchange(cell, pb.ChatRequest(messages=[USER]), "let me see \n</think>größe")
        assert joined(responses) == ("let me see", "größe")
        finish = responses[-1].finish
        assert finish.reason == pb.FINISH_REASON_STOP
        assert finish.stop_token_id == END_OF_TURN
        assert finish.usage.reasoning_tokens == len("let me see \n")
        assert finish.usage.completion_tokens == len(ids_of("let me see \n</think>größe")) + 1
        assert [i for r in responses for i in r.token_ids] == [*ids_of("let me see \n</think>größe"), END_OF_TURN]

    serve(tmp_path, test)


def test_instant_mode_has_content_only(tmp_path: Path) -> None:
    async def test(cell: PeerCell) -> None:
        _, responses = await exchange(cell, pb.ChatRequest(messages=[USER], thinking=False), "at </think>once")
        assert joined(responses) == ("", "at once")
        assert responses[-1].finish.usage.reasoning_tokens == 0

    serve(tmp_path, test)


def test_tool_calls_stream_and_count_on_from_the_history(tmp_path: Path) -> None:
    async def test(cell: PeerCell) -> None:
        earlier = pb.Message(role="assistant", tool_calls=[pb.ToolCall(id="call_x", name="look", arguments="{}")])
        result = pb.Message(role="tool", tool_call_id="call_x", content="blue")
        request = pb.ChatRequest(messages=[USER, earlier, result], tools=[LOOK])
        sequence, responses = await exchange(cell, request, f"I look{SECTION}{call()}{call()}{SECTION_END}")
        history = bytes(token for token in sequence.prompt_token_ids if token < 256).decode()
        assert "functions.look:0" in history
        assert "call_x" not in history
        assert joined(responses) == ("I look", "")
        calls = [piece for response in responses for piece in response.tool_calls]
        assert [(c.index, c.id, c.name) for c in calls if c.id] == [
            (0, "functions.look:1", "look"),
            (1, "functions.look:2", "look"),
        ]
        for index in (0, 1):
            assert "".join(c.arguments for c in calls if c.index == index) == AT_SKY
        assert len(calls) > 4, "arguments come in pieces"
        assert responses[-1].finish.reason == pb.FINISH_REASON_TOOL_CALLS
        assert sequence.HasField("grammar")
        assert not sequence.grammar.HasField("after_token_id")

    serve(tmp_path, test)


def test_a_call_that_meets_the_length_limit_says_so(tmp_path: Path) -> None:
    async def test(cell: PeerCell) -> None:
        request = pb.ChatRequest(messages=[USER], tools=[LOOK], tool_choice=pb.ToolChoice(name="look"))
        reply = f"{SECTION}{call()}"[:-20]
        _, responses = await exchange(cell, request, reply, pb.FINISH_REASON_LENGTH)
        assert responses[-1].finish.reason == pb.FINISH_REASON_LENGTH
        assert any(response.tool_calls for response in responses)

    serve(tmp_path, test)


def test_tool_choice_none_forbids_calls_and_reads_none(tmp_path: Path) -> None:
    async def test(cell: PeerCell) -> None:
        choice = pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE)
        request = pb.ChatRequest(messages=[USER], tools=[LOOK], tool_choice=choice, thinking=False)
        sequence, responses = await exchange(cell, request, "no")
        assert sequence.sampling.logit_bias[SPECIALS[SECTION]] == -100.0
        assert not sequence.HasField("grammar")
        assert joined(responses) == ("", "no")

    serve(tmp_path, test)


def test_a_constraint_waits_for_the_end_of_the_thought(tmp_path: Path) -> None:
    async def test(cell: PeerCell) -> None:
        sampling = pb.SamplingParams(constraint=pb.Constraint(json_object=True))
        thinking, _ = await exchange(cell, pb.ChatRequest(messages=[USER], sampling=sampling), "hm</think>{}")
        request = pb.ChatRequest(messages=[USER], sampling=sampling, thinking=False)
        instant, _ = await exchange(cell, request, "{}")
        assert thinking.grammar.after_token_id == SPECIALS["</think>"]
        assert not instant.grammar.HasField("after_token_id")

    serve(tmp_path, test)


def test_stop_texts_cut_what_the_caller_sees(tmp_path: Path) -> None:
    async def test(cell: PeerCell) -> None:
        request = pb.ChatRequest(messages=[USER], sampling=pb.SamplingParams(stop=["END"]))
        answering = asyncio.create_task(collect(cell.inference.Chat(request)))
        (sequence,) = (await cell.attention[0].next("admit")).sequences
        for token in ids_of("hm</think>the END"):
            await cell.attention[0].output(sequence.request_id, [token])
        responses = await answering
        assert joined(responses) == ("hm", "the ")
        assert responses[-1].finish.stop_text == "END"

    serve(tmp_path, test)


def test_each_choice_is_read_on_its_own(tmp_path: Path) -> None:
    async def test(cell: PeerCell) -> None:
        request = pb.ChatRequest(messages=[USER], sampling=pb.SamplingParams(n=2, logprobs=0, max_tokens=20))
        answering = asyncio.create_task(collect(cell.inference.Chat(request)))
        sequences: list[control.Sequence] = []
        while len(sequences) < 2:
            sequences += (await cell.attention[0].next("admit")).sequences
        for first, second in zip(ids_of("aa</think>bb"), ids_of("c</think>ddd"), strict=True):
            for sequence, token in zip(sequences, (first, second), strict=True):
                logprob = pb.TokenLogprobs(token_id=token, logprob=-1.0)
                await cell.attention[0].output(sequence.request_id, [token], logprobs=[logprob])
        for sequence in sequences:
            await cell.attention[0].finish(sequence.request_id)
        responses = await answering
        for choice, parts in enumerate((("aa", "bb"), ("c", "ddd"))):
            mine = [response for response in responses if response.choice == choice]
            assert joined(mine) == parts
            assert [p.token_id for r in mine for p in r.logprobs] == [i for r in mine for i in r.token_ids][:-1]

    serve(tmp_path, test)


def test_tokenize_tells_ids_and_text_of_a_conversation(tmp_path: Path) -> None:
    async def test(cell: PeerCell) -> None:
        hostile = pb.Message(role="user", content="a<end>b")
        for text in ("", "long " * 1000):
            messages = [hostile, pb.Message(role="user", content=text)]
            chat = pb.ChatRequest(messages=messages, thinking=False)
            response = await cell.inference.Tokenize(pb.TokenizeRequest(chat=chat))
            assert response.text == f"user:a<end>b<end>user:{text}<end><think></think>"
            assert list(response.token_ids).count(END_OF_TURN) == 2
            assert byte_tokenizer().decode(response.token_ids) == response.text

    serve(tmp_path, test)


BAD = [
    (pb.ChatRequest(), "messages: must not be empty"),
    (pb.ChatRequest(messages=[pb.Message(role="tool", content="x")]), "messages[0].tool_call_id"),
    (pb.ChatRequest(messages=[USER], tools=[pb.Tool(name="a b")]), "tools[0].name"),
    (pb.ChatRequest(messages=[USER], tools=[LOOK, pb.Tool(name="f", parameters="{")]), "tools[1].parameters: not JSON"),
    (pb.ChatRequest(messages=[USER], tools=[pb.Tool(name="f", parameters="[]")]), "tools[0].parameters: expected"),
    (pb.ChatRequest(messages=[USER], tool_choice=pb.ToolChoice(mode=2)), "tool_choice: asks for a call"),
    (pb.ChatRequest(messages=[USER], tool_choice=pb.ToolChoice(mode=9)), "tool_choice.mode: unknown value 9"),
    (pb.ChatRequest(messages=[USER], sampling=pb.SamplingParams(prompt_logprobs=1)), "prompt_logprobs: come with"),
    (
        pb.ChatRequest(messages=[USER], sampling=pb.SamplingParams(constraint=pb.Constraint(regex="("))),
        "constraint: ",
    ),
    (
        pb.ChatRequest(messages=[USER], sampling=pb.SamplingParams(constraint=pb.Constraint(json_schema="{"))),
        "constraint: json_schema: not JSON",
    ),
]


@pytest.mark.parametrize(("request_", "complaint"), BAD)
def test_what_is_wrong_is_refused_by_name(tmp_path: Path, request_: pb.ChatRequest, complaint: str) -> None:
    async def test(cell: PeerCell) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(cell.inference.Chat(request_))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert complaint in (caught.value.details() or "")

    serve(tmp_path, test)
