"""What takes long before the queue keeps nobody else's tokens, and is bounded."""

import asyncio
import threading
from pathlib import Path

import grpc
import pytest

from moonshard.errors import Overloaded, RequestError
from moonshard.router.frontdoor import FrontDoor
from moonshard.router.preparation import NUM_THREADS, Preparation
from moonshard.router.requests import Grammar
from moonshard.sampling import SamplingParams
from moonshard.v1 import inference_pb2 as pb
from moonshard.v1.inference_pb2_grpc import InferenceStub
from tests.unit.router.router_peers import collect, generate_request, ready_cell, run, small_config

WAIT_S = 20.0


def test_results_and_errors_come_back() -> None:
    def refuse() -> int:
        raise RequestError("text", "is none")

    async def test() -> None:
        preparation = Preparation()
        assert await preparation.run(lambda: 3) == 3
        with pytest.raises(RequestError, match="text: is none"):
            await preparation.run(refuse)
        preparation.close()

    run(test)


def test_who_would_wait_behind_too_many_is_told_to_come_back() -> None:
    async def test() -> None:
        preparation, go = Preparation(max_waiting=NUM_THREADS + 1), threading.Event()
        held = [asyncio.ensure_future(preparation.run(lambda: go.wait(WAIT_S))) for _ in range(NUM_THREADS + 1)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="3 requests are being prepared"):
            await preparation.run(lambda: None)
        held[0].cancel()  # its thread goes on: there is no more room than before
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await preparation.run(lambda: None)
        go.set()
        assert await asyncio.gather(*held[1:]) == [True] * NUM_THREADS
        while preparation.num_open:
            await asyncio.sleep(0)
        await preparation.run(lambda: None)
        preparation.close()

    run(test)


def test_tokens_flow_while_the_router_makes_a_grammar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By events: a token reaches its caller between the beginning and the end of another request's grammar."""
    begun, go = threading.Event(), threading.Event()
    real = FrontDoor.grammar_of

    def slow(door: FrontDoor, sampling: SamplingParams, opens_thought: bool) -> Grammar | None:
        if sampling.constraint:
            begun.set()
            assert go.wait(WAIT_S), "the event loop stood still"
        return real(door, sampling, opens_thought)

    monkeypatch.setattr(FrontDoor, "grammar_of", slow)

    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as peers:
            stub = InferenceStub(peers.channel)
            worker = peers.attention[0]
            free = stub.Generate(generate_request())
            (sequence,) = (await worker.next("admit")).sequences
            constraint = pb.Constraint(regex="[ab]+")
            bound = pb.GenerateRequest(
                token_ids=pb.TokenIds(ids=[5]), sampling=pb.SamplingParams(constraint=constraint)
            )
            call = asyncio.ensure_future(collect(stub.Generate(bound)))
            assert await asyncio.to_thread(begun.wait, WAIT_S)
            await worker.output(sequence.request_id, [97])
            assert list((await free.read()).token_ids) == [97]
            go.set()
            (other,) = (await worker.next("admit")).sequences
            assert other.grammar.text
            call.cancel()
            free.cancel()

    run(test)


def test_a_constraint_that_cannot_be_had_is_refused_from_the_thread(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as peers:
            constraint = pb.Constraint(json_schema="{")
            asked = pb.GenerateRequest(
                token_ids=pb.TokenIds(ids=[5]), sampling=pb.SamplingParams(constraint=constraint)
            )
            with pytest.raises(grpc.aio.AioRpcError, match="json_schema: not JSON") as caught:
                await collect(InferenceStub(peers.channel).Generate(asked))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    run(test)
