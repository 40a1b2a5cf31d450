"""The gateways' service over real gRPC, with a worker of the test's own."""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from smg_grpc_proto.generated import common_pb2 as common
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated.vllm_engine_pb2_grpc import VllmEngineStub

from moonshard.router.gateway.served import GatewayModel
from moonshard.router.served_model import ServedModel
from moonshard.tokenizer import load_tokenizer
from moonshard.v1 import control_pb2 as control
from tests.unit.router.router_peers import PeerCell, collect, ready_cell, run, small_config, small_model

VOCAB_SIZE = 2048


@pytest.fixture
def model(tiny_checkpoint: Path) -> ServedModel:
    tokenizer = load_tokenizer(tiny_checkpoint)
    eos = tuple(tokenizer.special_tokens[name] for name in ("<|im_end|>", "[EOS]"))
    gateway = GatewayModel(tiny_checkpoint, tokenizer, eos)
    return replace(
        small_model(), vocab_size=VOCAB_SIZE, eos_token_ids=eos, tokenizer=tokenizer, gateway=gateway, name="kimi"
    )


@pytest.fixture
def cell(tmp_path: Path, model: ServedModel) -> AbstractAsyncContextManager[PeerCell]:
    return ready_cell(small_config(tmp_path), model, num_blocks=16)


def request(ids: Sequence[int] = (5, 6), stream: bool = False, **values: Any) -> pb.GenerateRequest:
    named = {"request_id": "r1", "sampling_params": pb.SamplingParams(max_tokens=4)}
    return pb.GenerateRequest(tokenized=pb.TokenizedInput(input_ids=ids), stream=stream, **(named | values))


def stub_of(cell: PeerCell) -> Any:
    return VllmEngineStub(cell.channel)  # type: ignore[no-untyped-call]


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (collect(call) if hasattr(call, "__aiter__") else call)
    return caught.value.code(), str(caught.value.details())


def test_a_stream_and_its_counts(cell: AbstractAsyncContextManager[PeerCell], model: ServedModel) -> None:
    async def test() -> None:
        async with cell as peers:
            worker = peers.attention[0]
            call = asyncio.create_task(collect(stub_of(peers).Generate(request(stream=True))))
            (sequence,) = (await worker.next("admit")).sequences
            assert list(sequence.prompt_token_ids) == [5, 6]
            assert sequence.sampling.temperature == 1.0
            await worker.output(sequence.request_id, [7], num_cached_tokens=1)
            end = model.eos_token_ids[0]
            await worker.output(sequence.request_id, [8, end], finish_reason=1, stop_token_id=end)
            *chunks, last = await call
            assert [token for chunk in chunks for token in chunk.chunk.token_ids] == [7, 8, end]
            assert last.complete.finish_reason == "stop"
            assert (last.complete.prompt_tokens, last.complete.completion_tokens) == (2, 3)
            assert last.complete.cached_tokens == 1

    run(test)


def test_an_anthropic_request_that_asks_for_no_thought_gets_none(
    cell: AbstractAsyncContextManager[PeerCell], model: ServedModel
) -> None:
    async def test() -> None:
        async with cell as peers:
            special = load_tokenizer(model.gateway.checkpoint).special_tokens if model.gateway else {}
            asked = request([5, special["<think>"]], request_id="msg_1")
            call = stub_of(peers).Generate(asked)
            (sequence,) = (await peers.attention[0].next("admit")).sequences
            assert list(sequence.prompt_token_ids) == [5, special["<think>"], special["</think>"]]
            assert sequence.sampling.temperature == pytest.approx(0.6)
            call.cancel()

    run(test)


def test_abort_ends_the_stream(cell: AbstractAsyncContextManager[PeerCell]) -> None:
    async def test() -> None:
        async with cell as peers:
            stub = stub_of(peers)
            call = asyncio.create_task(code_of(stub.Generate(request())))
            await peers.attention[0].next("admit")
            await stub.Abort(pb.AbortRequest(request_ids=["r1", "unknown"]))
            assert (await call)[0] is grpc.StatusCode.ABORTED
            await peers.attention[0].next("abort")

    run(test)


REFUSED = [
    ({"mm_inputs": pb.MultimodalInputs()}, "mm_inputs"),
    ({"media_refs": pb.MediaRefs()}, "mm_inputs"),
    ({"kv_transfer_params_json": "{}"}, "kv_transfer_params"),
    ({"data_parallel_rank": 3}, "data_parallel_rank"),
    ({"sampling_params": pb.SamplingParams(truncate_prompt_tokens=-1)}, "truncate_prompt_tokens"),
    ({"sampling_params": pb.SamplingParams(temperature=9)}, "temperature"),
    ({"sampling_params": pb.SamplingParams(json_schema="{")}, "constraint"),
]


def test_what_cannot_be_done_is_refused_by_name(cell: AbstractAsyncContextManager[PeerCell]) -> None:
    async def test() -> None:
        async with cell as peers:
            stub = stub_of(peers)
            for values, field in REFUSED:
                code, details = await code_of(stub.Generate(request(**values)))
                assert code is grpc.StatusCode.INVALID_ARGUMENT
                assert details.startswith(f"{field}: ")
            for call in (
                stub.Embed(pb.EmbedRequest()),
                stub.StartProfile(common.StartProfileRequest()),
                stub.StopProfile(common.StopProfileRequest()),
            ):
                code, details = await code_of(call)
                assert code is grpc.StatusCode.UNIMPLEMENTED
                assert "moonshard" in details

    run(test)


def test_what_gateways_ask_about_the_cell(cell: AbstractAsyncContextManager[PeerCell], model: ServedModel) -> None:
    async def test() -> None:
        async with cell as peers:
            stub = stub_of(peers)
            assert (await stub.HealthCheck(pb.HealthCheckRequest())).healthy
            info = await stub.GetModelInfo(pb.GetModelInfoRequest())
            assert info.served_model_name == "kimi"
            assert info.model_type == "kimi_k25"
            assert list(info.eos_token_ids) == list(model.eos_token_ids)
            assert info.max_context_length == 256
            assert (await stub.GetServerInfo(pb.GetServerInfoRequest())).max_num_seqs == 64
            (load,) = (await stub.GetLoads(pb.GetLoadsRequest())).loads
            assert (load.num_running_reqs, load.max_total_num_tokens, load.num_used_tokens) == (0, 256, 0)
            chunks = await collect(stub.GetTokenizer(common.GetTokenizerRequest()))
            data = b"".join(chunk.data for chunk in chunks)
            assert chunks[-1].sha256 == hashlib.sha256(data).hexdigest()
            assert (await stub.FlushCache(common.FlushCacheRequest())).success
            await peers.attention[0].next("flush_cache")

    run(test)


def test_kv_events_reach_subscribers(cell: AbstractAsyncContextManager[PeerCell]) -> None:
    async def test() -> None:
        async with cell as peers:
            stream = stub_of(peers).SubscribeKvEvents(common.SubscribeKvEventsRequest())
            assert (await stream.read()).events[0].WhichOneof("data") == "cleared"
            stored = control.KvEvent(stored=control.KvBlock(hash=3, token_ids=[1] * 16))
            await peers.attention[0].send(kv_events=control.KvEvents(events=[stored]))
            (event,) = (await stream.read()).events
            assert event.stored.blocks[0].block_hash == 3
            stream.cancel()

    run(test)


def test_a_cell_that_is_not_ready_says_why(tmp_path: Path, model: ServedModel) -> None:
    async def test() -> None:
        from tests.unit.router.router_peers import started_router

        async with started_router(small_config(tmp_path), model) as peers:
            stub = stub_of(peers)
            health = await stub.HealthCheck(pb.HealthCheckRequest())
            assert not health.healthy
            assert "has not joined" in health.message
            assert (await code_of(stub.Generate(request())))[0] is grpc.StatusCode.UNAVAILABLE

    run(test)
