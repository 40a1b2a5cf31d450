"""The table of errors and statuses, and the guard around servicers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from moonshard import errors
from moonshard.rpc.server import RpcServer
from moonshard.rpc.status import STATUS_DETAILS, status_of
from moonshard.v1 import inference_pb2 as pb
from moonshard.v1.inference_pb2_grpc import InferenceServicer, InferenceStub, add_InferenceServicer_to_server

LIMIT_S = 10.0


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (errors.RequestError("top_p", "is odd"), grpc.StatusCode.INVALID_ARGUMENT, "top_p: is odd"),
        (errors.DuplicateRequest("request_id", "in use"), grpc.StatusCode.ALREADY_EXISTS, "request_id: in use"),
        (errors.Unavailable("draining"), grpc.StatusCode.UNAVAILABLE, "draining"),
        (errors.Unauthenticated("no key"), grpc.StatusCode.UNAUTHENTICATED, "no key"),
        (errors.ConfigError("rank", "taken"), grpc.StatusCode.FAILED_PRECONDITION, "rank: taken"),
        (errors.PeerLost("gone"), grpc.StatusCode.INTERNAL, "internal error (PeerLost); see the server's log"),
        (KeyError("secret"), grpc.StatusCode.INTERNAL, "internal error (KeyError); see the server's log"),
    ],
)
def test_every_error_has_its_status(error: Exception, code: grpc.StatusCode, details: str) -> None:
    status = status_of(error)
    assert (status.code, status.details, status.trailing_metadata) == (code, details, ())


def test_overload_tells_when_to_come_back() -> None:
    status = status_of(errors.Overloaded("full", 2.5))
    assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing: dict[str, Any] = dict(status.trailing_metadata)
    retry = RetryInfo()
    found = Status.FromString(trailing[STATUS_DETAILS])
    assert found.details[0].Unpack(retry)
    assert (trailing["retry-after"], retry.retry_delay.ToMilliseconds()) == ("2.5", 2500)
    assert (found.code, found.message) == (8, "full; retry after 2.5 s")


class _Servicer(InferenceServicer):
    """Streams for ever; notes when its generator ends."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        try:
            while True:
                yield pb.GenerateResponse(text="x" * 65536)
        finally:
            self.ended.set()

    async def Chat(self, request: pb.ChatRequest, context: Any) -> AsyncIterator[pb.ChatResponse]:
        yield pb.ChatResponse(content="one")
        raise errors.Unavailable("expert-1 lost")

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        raise errors.RequestError("field", "bad")


def test_the_guard_ends_calls_with_statuses_and_closes_generators_at_once() -> None:
    async def test() -> None:
        servicer, server = _Servicer(), RpcServer((), max_message_mb=4)
        add_InferenceServicer_to_server(servicer, server.server)
        port = await server.start("127.0.0.1", 0, "router.port")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = InferenceStub(channel)
            chat = stub.Chat(pb.ChatRequest())
            assert (await chat.read()).content == "one"
            with pytest.raises(grpc.aio.AioRpcError, match="expert-1 lost"):
                await chat.read()
            with pytest.raises(grpc.aio.AioRpcError, match="field: bad"):
                await stub.GetModel(pb.GetModelRequest())
            # Nobody reads: the servicer is stuck in a write when the client leaves.
            endless = stub.Generate(pb.GenerateRequest())
            await endless.read()
            await asyncio.sleep(0.1)
            assert not servicer.ended.is_set()
            endless.cancel()
            await servicer.ended.wait()
        await server.stop(0)

    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await test()

    asyncio.run(limited())
