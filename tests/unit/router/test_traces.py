"""Routing traces at the router: what is kept, who may read it, which requests are traced."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from moonshard.config import CellConfig
from moonshard.router.traces import STEPS_KEPT, TraceBook, last_shard, trace_response
from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.commands.trace import rows, summary
from tests.unit.router.router_peers import PeerCell, collect, generate_request, ready_cell, run, small_config


def step(name: str, position: int, seconds: float, waits: tuple[float, ...] = (0.0, 0.1)) -> pb.RoutingStep:
    layers = [pb.LayerRoute(layer=layer, experts=[3, 1], wait_s=waits, combine_s=max(waits)) for layer in (1, 2)]
    return pb.RoutingStep(request_id=name, position=position, num_tokens=1, num_rows=4, seconds=seconds, layers=layers)


def test_the_slowest_iterations_are_kept_in_full_and_all_of_them_in_sums() -> None:
    book = TraceBook(kept=2)
    book.begin("a#0", "a", 0)
    book.add(1, [step("a#0", 0, 0.001)])
    for number in range(1, 100):
        book.add(1, [step("a#0", number, 0.01 * (number % 50))])
    (found,) = trace_response(book, "a").sequences
    assert (found.num_steps, found.rank, len(found.steps)) == (100, 1, STEPS_KEPT)
    assert found.steps[0].position == 0
    positions = [kept.position for kept in found.steps]
    assert positions == sorted(positions)
    assert min(kept.seconds for kept in found.steps[1:]) >= 0.01 * 34
    assert list(found.num_last) == [0, 200]
    assert found.wait_s[1] == pytest.approx(20.0)


def test_the_oldest_make_room_and_strangers_are_nobody() -> None:
    book = TraceBook(kept=2)
    for name in ("a", "b", "c"):
        book.begin(f"{name}#0", name, 0)
    book.add(0, [step("a#0", 0, 1.0), step("c#0", 0, 1.0), step("unknown", 0, 1.0)])
    assert book.request_ids == ["b", "c"]
    assert book.of("a") == []
    assert [trace.num_steps for trace in book.of("c")] == [1]
    book.begin("b#2", "b", 0)  # the same id again: the last one counts
    book.add(0, [step("b#2", 0, 1.0)])
    assert [trace.num_steps for trace in book.of("b")] == [1]


@pytest.mark.parametrize(
    ("waits", "last"), [((0.0, 0.2), 1), ((0.3, 0.2), 0), ((0.2, 0.2), None), ((0.0, 0.0), None), ((), None)]
)
def test_the_last_shard_is_the_one_that_was_waited_for_longest(waits: tuple[float, ...], last: int | None) -> None:
    assert last_shard(pb.LayerRoute(wait_s=waits)) == last


def test_what_the_command_says() -> None:
    sequence = pb.SequenceTrace(
        request_id="r", num_steps=4, seconds=0.02, num_last=[1, 7], wait_s=[0.001, 0.014], steps=[step("r", 9, 0.01)]
    )
    assert list(summary(sequence)) == [
        "r, choice 0: 4 iterations, last of attention-0, 5.0 ms each",
        "waited longest for shard 1 (7x, 14.0 ms), 0 (1x, 1.0 ms)",
    ]
    assert list(rows(step("r", 9, 0.01), 1)) == [("9", "10.00", "4", "1", "100.00", "1", "3 1")]
    assert [row[0] for row in rows(step("r", 9, 0.01), 4)] == ["9", ""]


async def traced_id(peers: PeerCell, metadata: tuple[tuple[str, str], ...]) -> tuple[bool, str]:
    """Whether a request with these metadata is traced at its worker, and the sequence's id there."""
    call = asyncio.ensure_future(collect(peers.inference.Generate(generate_request(), metadata=metadata)))
    worker = peers.attention[0]
    (sequence,) = (await worker.next("admit")).sequences
    await worker.send(routing=pb.RoutingSteps(steps=[step(sequence.request_id, 0, 0.5)]))
    await worker.finish(sequence.request_id)
    (response, *_) = await call
    return sequence.traced, response.request_id


def test_who_asks_is_traced_and_nobody_else(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as peers:
            assert not (await traced_id(peers, ()))[0]
            traced, name = await traced_id(peers, (("x-trace", "1"),))
            assert traced
            cluster: Any = peers.cluster
            listed = await cluster.GetTrace(pb.GetTraceRequest())
            assert list(listed.request_ids) == [name]
            (found,) = (await cluster.GetTrace(pb.GetTraceRequest(request_id=name))).sequences
            assert (found.num_steps, list(found.steps[0].layers[0].experts)) == (1, [3, 1])
            with pytest.raises(grpc.aio.AioRpcError, match="request_id: no trace of 'other' is kept"):
                await cluster.GetTrace(pb.GetTraceRequest(request_id="other"))

    run(test)


def test_a_share_of_all_requests_can_be_traced(tmp_path: Path) -> None:
    async def test() -> None:
        config = small_config(tmp_path)
        values = config.model_dump() | {"metrics": config.metrics.model_dump() | {"trace_share": 1.0}}
        async with ready_cell(CellConfig.model_validate(values)) as peers:
            assert (await traced_id(peers, ()))[0]

    run(test)


def test_reading_needs_the_operators_key(tmp_path: Path) -> None:
    key = tmp_path / "operator-key"
    key.write_text("secret-of-the-operator")

    async def test() -> None:
        async with ready_cell(small_config(tmp_path, router={"port": 0, "operator_key_file": key})) as peers:
            cluster: Any = peers.cluster
            await cluster.GetTrace(pb.GetTraceRequest(), metadata=peers.operator)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await cluster.GetTrace(pb.GetTraceRequest())
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

    run(test)
