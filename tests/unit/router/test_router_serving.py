"""Generate, Chat and GetModel through a real server, with workers that are real gRPC peers."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from moonshard.v1 import inference_pb2 as pb
from tests.unit.router.router_peers import (
    END_OF_TEXT,
    END_OF_TURN,
    LIMIT_S,
    SPECIALS,
    VOCAB_SIZE,
    PeerCell,
    collect,
    generate_request,
    ready_cell,
    run,
    small_config,
    started_router,
)


def test_generate_streams_text_and_ids(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as cell:
            call = asyncio.create_task(collect(cell.inference.Generate(generate_request("hi", request_id="a"))))
            sequence = await cell.attention[0].answer("né!")
            responses = await call
        assert bytes(sequence.prompt_token_ids) == b"hi"
        assert "".join(r.text for r in responses) == "né!"
        assert [i for r in responses for i in r.token_ids] == [*"né!".encode(), END_OF_TURN]
        assert {r.request_id for r in responses} == {"a"}
        assert [r.HasField("finish") for r in responses].count(True) == 1
        finish = responses[-1].finish
        assert (finish.reason, finish.stop_token_id) == (pb.FINISH_REASON_STOP, END_OF_TURN)
        assert (finish.usage.prompt_tokens, finish.usage.completion_tokens) == (2, 5)
        assert min(finish.timings.queue_s, finish.timings.prefill_s, finish.timings.decode_s) >= 0

    run(test)


def test_the_worker_gets_resolved_sampling(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as cell:
            call = asyncio.create_task(collect(cell.inference.Generate(generate_request("abc"))))
            sampling = (await cell.attention[0].answer("x")).sampling
            await call
            asked = pb.SamplingParams(temperature=0, seed=7, max_tokens=3, stop_token_ids=[9], ignore_eos=True)
            call = asyncio.create_task(collect(cell.inference.Generate(generate_request("abc", sampling=asked))))
            explicit = (await cell.attention[0].answer("x")).sampling
            await call
        assert all(sampling.HasField(name) for name in ("temperature", "top_p", "top_k", "seed", "max_tokens"))
        assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 0.95, 0)
        assert sampling.max_tokens == 8 * 16 - 3  # the KV cache is the narrower limit
        assert list(sampling.stop_token_ids) == [END_OF_TURN, END_OF_TEXT]
        assert (explicit.temperature, explicit.seed, explicit.max_tokens) == (0.0, 7, 3)
        assert list(explicit.stop_token_ids) == [9]

    run(test)


def test_chat_renders_the_template_with_special_tokens(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as cell:
            messages = [pb.Message(role="user", content="yo")]
            call = asyncio.create_task(collect(cell.inference.Chat(pb.ChatRequest(messages=messages))))
            thinking = await cell.attention[0].answer("ok")
            responses = await call
            call = asyncio.create_task(collect(cell.inference.Chat(pb.ChatRequest(messages=messages, thinking=False))))
            instant = await cell.attention[0].answer("ok")
            await call
        think, end = SPECIALS["<think>"], SPECIALS["</think>"]
        assert list(thinking.prompt_token_ids) == [*b"user:yo", END_OF_TURN, think]
        assert list(instant.prompt_token_ids) == [*b"user:yo", END_OF_TURN, think, end]
        assert (thinking.sampling.temperature, instant.sampling.temperature) == (1.0, 0.6)
        assert "".join(r.reasoning_content for r in responses) == "ok", "the thought was never closed"

    run(test)


def test_text_prompts_never_become_special_tokens(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as cell:
            call = asyncio.create_task(collect(cell.inference.Generate(generate_request("<end>"))))
            sequence = await cell.attention[0].answer("x")
            await call
        assert bytes(sequence.prompt_token_ids) == b"<end>"

    run(test)


def test_get_model_tells_the_narrower_limit(tmp_path: Path) -> None:
    async def test() -> None:
        async with started_router(small_config(tmp_path)) as cell:
            before = await cell.inference.GetModel(pb.GetModelRequest())
        async with ready_cell(small_config(tmp_path), num_blocks=3) as cell:
            after = await cell.inference.GetModel(pb.GetModelRequest())
        assert (before.name, before.vocab_size, before.max_model_len) == ("small", VOCAB_SIZE, 512)
        assert (after.max_model_len, after.num_experts, after.num_experts_per_token) == (48, 16, 2)
        assert list(after.eos_token_ids) == [END_OF_TURN, END_OF_TEXT]
        assert after.default_sampling.temperature == 1.0

    run(test)


def test_a_client_that_leaves_aborts_its_sequence_and_frees_the_room(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path), max_num_seqs=1) as cell:
            worker = cell.attention[0]
            call = cell.inference.Generate(generate_request("a", request_id="same"))
            first = (await worker.next("admit")).sequences[0]
            await worker.output(first.request_id, [65])
            assert (await call.read()).text == "A"
            call.cancel()
            assert list((await worker.next("abort")).request_ids) == [first.request_id]
            # The id is free again, and late tokens of its former life must not reach the new one.
            again = asyncio.create_task(collect(cell.inference.Generate(generate_request("b", request_id="same"))))
            second = (await worker.next("admit")).sequences[0]
            assert second.request_id != first.request_id
            await worker.output(first.request_id, [66])
            await worker.finish(second.request_id)
            assert [i for r in await again for i in r.token_ids] == [END_OF_TURN]

    run(test)


def test_a_deadline_aborts_a_running_and_drops_a_waiting_request(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path), max_num_seqs=1) as cell:
            running = asyncio.create_task(collect(cell.inference.Generate(generate_request(), timeout=0.5)))
            sequence = (await cell.attention[0].next("admit")).sequences[0]
            waiting = asyncio.create_task(collect(cell.inference.Generate(generate_request(), timeout=0.1)))
            for call in (waiting, running):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert list((await cell.attention[0].next("abort")).request_ids) == [sequence.request_id]
            await cell.until(lambda status: status.num_running == status.num_waiting == 0)

    run(test)


def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    async def test() -> None:
        config = small_config(tmp_path, router={"port": 0, "max_queue": 1})
        async with ready_cell(config, max_num_seqs=1) as cell:
            calls = [cell.inference.Generate(generate_request(request_id="running"))]
            await cell.until(lambda status: status.num_running == 1)
            calls.append(cell.inference.Generate(generate_request(request_id="waiting")))
            await cell.until(lambda status: status.num_waiting == 1)
            error = await _error(cell, generate_request(request_id="too-many"))
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "1 of 1 requests" in (error.details() or "")
            _check_retry_hint(error)
            tasks = [asyncio.create_task(collect(call)) for call in calls]
            for text in ("one", "two"):  # first come, first served
                await cell.attention[0].answer(text)
            texts = ["".join(r.text for r in responses) for responses in await asyncio.gather(*tasks)]
            assert texts == ["one", "two"]

    run(test)


def _check_retry_hint(error: grpc.aio.AioRpcError) -> None:
    metadata: Any = error.trailing_metadata()
    trailing = dict(metadata)
    assert float(trailing["retry-after"]) > 0
    retry = RetryInfo()
    assert Status.FromString(trailing["grpc-status-details-bin"]).details[0].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() > 0


LONG = "x" * 600
BAD_REQUESTS: list[tuple[str, Any, grpc.StatusCode, str]] = [
    ("no prompt", pb.GenerateRequest(), grpc.StatusCode.INVALID_ARGUMENT, "prompt: is required"),
    ("empty text", generate_request(""), grpc.StatusCode.INVALID_ARGUMENT, "prompt: must not be empty"),
    ("no ids", pb.GenerateRequest(token_ids=pb.TokenIds()), grpc.StatusCode.INVALID_ARGUMENT, "must not be empty"),
    ("id too high", pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, VOCAB_SIZE])), grpc.StatusCode.INVALID_ARGUMENT,
     f"token_ids[1]: token id must be in 0..{VOCAB_SIZE - 1}, got {VOCAB_SIZE}"),
    ("id below 0", pb.GenerateRequest(token_ids=pb.TokenIds(ids=[-1])), grpc.StatusCode.INVALID_ARGUMENT, "got -1"),
    ("prompt too long", generate_request(LONG), grpc.StatusCode.INVALID_ARGUMENT, "600 tokens leave no room"),
    ("max_tokens too high", generate_request("abc", sampling=pb.SamplingParams(max_tokens=126)),
     grpc.StatusCode.INVALID_ARGUMENT,
     "max_tokens: prompt of 3 + max_tokens of 126 tokens exceed this cell's limit of 128"),
    ("max_tokens 0", generate_request(sampling=pb.SamplingParams(max_tokens=0)), grpc.StatusCode.INVALID_ARGUMENT,
     "max_tokens: must be at least 1, got 0"),
    ("temperature", generate_request(sampling=pb.SamplingParams(temperature=2.5)), grpc.StatusCode.INVALID_ARGUMENT,
     "temperature: must be in [0, 2], got 2.5"),
    ("temperature NaN", generate_request(sampling=pb.SamplingParams(temperature=float("nan"))),
     grpc.StatusCode.INVALID_ARGUMENT, "temperature"),
    ("top_p", generate_request(sampling=pb.SamplingParams(top_p=0.0)), grpc.StatusCode.INVALID_ARGUMENT, "top_p"),
    ("top_k", generate_request(sampling=pb.SamplingParams(top_k=-1)), grpc.StatusCode.INVALID_ARGUMENT, "top_k"),
    ("stop id", generate_request(sampling=pb.SamplingParams(stop_token_ids=[999])),
     grpc.StatusCode.INVALID_ARGUMENT, f"stop_token_ids[0]: token id must be in 0..{VOCAB_SIZE - 1}, got 999"),
    ("too many stops", generate_request(sampling=pb.SamplingParams(stop_token_ids=range(65))),
     grpc.StatusCode.INVALID_ARGUMENT, "stop_token_ids: must be at most 64, got 65"),
    ("too many stops with ours", generate_request(sampling=pb.SamplingParams(stop_token_ids=range(63))),
     grpc.StatusCode.INVALID_ARGUMENT, "must be at most 64 with the 2 end-of-turn ids, got 65"),
    ("long id", generate_request(request_id="i" * 129), grpc.StatusCode.INVALID_ARGUMENT, "at most 128 characters"),
    ("odd id", generate_request(request_id="a\nb"), grpc.StatusCode.INVALID_ARGUMENT, "must be printable"),
    ("id in use", generate_request(request_id="held"), grpc.StatusCode.ALREADY_EXISTS, "'held' is in use"),
    ("no messages", pb.ChatRequest(), grpc.StatusCode.INVALID_ARGUMENT, "messages: must not be empty"),
    ("unknown role", pb.ChatRequest(messages=[pb.Message(role="boss", content="go")]),
     grpc.StatusCode.INVALID_ARGUMENT, "messages[0].role: expected one of system, user, assistant, tool; found 'boss'"),
]  # fmt: skip


def test_bad_requests_are_refused_and_the_next_good_one_is_served(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as cell:
            held = cell.inference.Generate(
                generate_request(request_id="held", sampling=pb.SamplingParams(max_tokens=9))
            )
            await cell.attention[0].next("admit")
            for name, request, code, words in BAD_REQUESTS:
                error = await _error(cell, request)
                assert (name, error.code()) == (name, code)
                assert words in (error.details() or ""), name
                call = asyncio.create_task(collect(cell.inference.Generate(_short_request())))
                await cell.attention[0].answer("fine")
                assert "".join(r.text for r in await call) == "fine", name
            held.cancel()

    run(test)


def _short_request() -> pb.GenerateRequest:
    return generate_request("good", sampling=pb.SamplingParams(max_tokens=8))


async def _error(cell: PeerCell, request: Any) -> grpc.aio.AioRpcError:
    method = cell.inference.Chat if isinstance(request, pb.ChatRequest) else cell.inference.Generate
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(method(request, timeout=LIMIT_S))
    return caught.value


def test_a_sequence_that_fails_on_its_worker_fails_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as cell:
            call = asyncio.create_task(_error(cell, _short_request()))
            sequence = (await cell.attention[0].next("admit")).sequences[0]
            await cell.attention[0].output(sequence.request_id, [65], error="shard 1 did not answer within 60 s")
            error = await call
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert error.details() == "attention-0: shard 1 did not answer within 60 s"
            good = asyncio.create_task(collect(cell.inference.Generate(_short_request())))
            await cell.attention[0].answer("on we go")
            assert "".join(r.text for r in await good) == "on we go"

    run(test)


def test_a_bug_is_internal_and_the_server_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as cell:
            cell.router.engine.check_open = lambda: 1 / 0  # type: ignore[method-assign, assignment]
            error = await _error(cell, _short_request())
            assert error.code() == grpc.StatusCode.INTERNAL
            assert "ZeroDivisionError" in (error.details() or "")
            assert "Traceback" in caplog.text
            del cell.router.engine.check_open
            call = asyncio.create_task(collect(cell.inference.Generate(_short_request())))
            await cell.attention[0].answer("still here")
            assert "".join(r.text for r in await call) == "still here"

    run(test)


def test_requests_spread_over_two_attention_workers(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path, num_attention=2)) as cell:
            calls = [asyncio.create_task(collect(cell.inference.Generate(_short_request()))) for _ in range(2)]
            await asyncio.gather(*(worker.answer("both") for worker in cell.attention))
            for responses in await asyncio.gather(*calls):
                assert "".join(r.text for r in responses) == "both"

    run(test)
