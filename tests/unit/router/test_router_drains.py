"""Workers that leave service on purpose, through a real server: when they may, what becomes of what they run."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from moonshard.v1 import control_pb2 as pb
from tests.unit.router.router_peers import (
    LIMIT_S,
    PeerCell,
    PeerWorker,
    collect,
    generate_request,
    join_message,
    ready_cell,
    run,
    small_config,
)

_NOT_NOW, _INVALID = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT
EXPERT, ATTENTION = pb.ROLE_EXPERT, pb.ROLE_ATTENTION


def _drain(cell: PeerCell, role: pb.Role.ValueType, rank: int, **values: Any) -> Any:
    return cell.cluster.Drain(pb.DrainRequest(role=role, rank=rank, **values))


async def _refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(call)
    return caught.value.code(), caught.value.details() or ""


async def _next(call: Any) -> pb.DrainProgress:
    async with asyncio.timeout(LIMIT_S):
        progress: pb.DrainProgress = await call.read()
    return progress


async def _ends_drained(call: Any) -> bool:
    progress = await _next(call)
    while not progress.is_drained and progress is not grpc.aio.EOF:
        progress = await _next(call)
    return progress.is_drained and await _next(call) is grpc.aio.EOF


async def _members(worker: PeerWorker, epoch: int) -> list[tuple[int, int]]:
    """Shard and copy of the members of this epoch, once they are told."""
    while (members := await worker.next("members")).epoch < epoch:
        pass
    assert members.epoch == epoch
    return [(it.shard, it.replica) for it in members.shards]


async def _replica(cell: PeerCell, rank: int) -> PeerWorker:
    worker = await PeerWorker(cell.channel, join_message(EXPERT, rank)).__aenter__()
    await worker.next("welcome")
    await worker.ready_shard()
    return worker


def _states(status: pb.GetStatusResponse, role: pb.Role.ValueType) -> dict[int, str]:
    named = pb.WorkerState.Name
    return {it.rank: named(it.state).removeprefix("WORKER_STATE_") for it in status.workers if it.role == role}


def test_a_shard_leaves_only_while_its_experts_have_another_copy(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as cell:
            code, words = await _refusal(_drain(cell, EXPERT, 1))
            assert code == _NOT_NOW
            assert words == "without expert-1 8 of 16 experts have no live copy"
            assert _states(await cell.status(), EXPERT) == {0: "READY", 1: "READY"}
            code, words = await _refusal(_drain(cell, EXPERT, 2))
            assert (code, words) == (
                grpc.StatusCode.INVALID_ARGUMENT,
                "rank: expert ranks of this cell are 0..1, got 2",
            )

    run(test)


def test_a_shard_with_a_copy_leaves_and_may_come_back(tmp_path: Path) -> None:
    async def test() -> None:
        config = small_config(tmp_path, num_replicas=2)
        async with ready_cell(config) as cell:
            before = (await cell.status()).epoch
            assert [it.is_drained for it in await collect(_drain(cell, EXPERT, 1))] == [True]
            assert await _members(cell.attention[0], before + 1) == [(0, 0), (0, 1), (1, 1)]
            status = await cell.status()
            assert status.ready
            assert status.coverage.min_copies == 1
            assert _states(status, EXPERT)[1] == "DRAINING"
            code, words = await _refusal(_drain(cell, EXPERT, 3))
            assert (code, words) == (
                _NOT_NOW,
                "without expert-3 8 of 16 experts have no live copy",
            )
            assert await collect(_drain(cell, EXPERT, 1, undo=True)) == []
            assert await _members(cell.attention[0], before + 2) == [(0, 0), (1, 0), (0, 1), (1, 1)]
            assert _states(await cell.status(), EXPERT)[1] == "READY"
            code, words = await _refusal(_drain(cell, EXPERT, 1, undo=True))
            assert (code, words) == (_NOT_NOW, "expert-1 is not drained")

    run(test)


def test_a_drain_waits_for_the_copy_that_is_missing(tmp_path: Path) -> None:
    async def test() -> None:
        config = small_config(tmp_path, num_replicas=2)
        async with ready_cell(config) as cell:
            cell.shards[3].call.cancel()
            await cell.until(lambda status: status.coverage.min_copies == 1)
            call = _drain(cell, EXPERT, 1, waits=True)
            assert (await _next(call)).waits_for == "without expert-1 8 of 16 experts have no live copy"
            cell.shards[3] = await _replica(cell, 3)
            assert await _ends_drained(call)
            assert _states(await cell.status(), EXPERT)[1] == "DRAINING"

    run(test)


def test_an_attention_worker_finishes_what_it_runs(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path, num_attention=2)) as cell:
            running = asyncio.create_task(collect(cell.inference.Generate(generate_request())))
            first = (await cell.attention[0].next("admit")).sequences[0]
            call = _drain(cell, ATTENTION, 0)
            progress = await _next(call)
            assert (progress.is_drained, progress.num_sequences) == (False, 1)
            code, words = await _refusal(_drain(cell, ATTENTION, 1))
            assert (code, words) == (
                grpc.StatusCode.FAILED_PRECONDITION,
                "no attention worker but attention-1 is ready",
            )
            newer = asyncio.create_task(collect(cell.inference.Generate(generate_request())))
            await cell.attention[1].answer("elsewhere")
            await cell.attention[0].finish(first.request_id)
            assert await _ends_drained(call)
            assert all(answer[-1].HasField("finish") for answer in await asyncio.gather(running, newer))

    run(test)


@pytest.mark.parametrize("finish_s", [0.0, 0.05])
def test_what_does_not_end_in_time_goes_on_elsewhere(tmp_path: Path, finish_s: float) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path, num_attention=2)) as cell:
            running = asyncio.create_task(collect(cell.inference.Generate(generate_request())))
            first = (await cell.attention[0].next("admit")).sequences[0]
            await cell.attention[0].output(first.request_id, list(b"ab"))
            await cell.until(lambda status: cell.router.engine.num_running_at(0) == 1)
            await cell.attention[0].send(heartbeat=pb.Heartbeat(resident_bytes=7))
            await cell.until(lambda status: any(worker.resident_bytes == 7 for worker in status.workers))
            async with asyncio.timeout(LIMIT_S):
                assert (await collect(_drain(cell, ATTENTION, 0, finish_s=finish_s)))[-1].is_drained
            assert (await cell.attention[0].next("abort")).request_ids == [first.request_id]
            again = (await cell.attention[1].next("admit")).sequences[0]
            assert (again.request_id, bytes(again.output_token_ids)) == (first.request_id, b"ab")
            await cell.attention[1].output(again.request_id, list(b"cd"))
            await cell.attention[1].finish(again.request_id)
            assert "".join(response.text for response in await running) == "abcd"
            await collect(_drain(cell, ATTENTION, 0, undo=True))
            newest = asyncio.create_task(collect(cell.inference.Generate(generate_request())))
            await cell.attention[0].answer("back")
            assert "".join(response.text for response in await newest) == "back"

    run(test)


def test_a_drained_worker_that_ends_is_no_loss_and_its_successor_serves(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path, num_attention=2)) as cell:
            await collect(_drain(cell, ATTENTION, 0, finish_s=0.0))
            cell.attention[0].call.cancel()
            await cell.until(lambda status: len(status.workers) == 4)
            assert not cell.router.cell.losses.lost
            async with PeerWorker(cell.channel, join_message(ATTENTION, 0)) as successor:
                await successor.next("welcome")
                await successor.next("members")
                await successor.ready_attention()
                await cell.until(lambda status: _states(status, ATTENTION) == {0: "READY", 1: "READY"})

    run(test)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (pb.DrainRequest(), "role: must be router, attention or expert, got 0"),
        (pb.DrainRequest(role=ATTENTION, finish_s=-1), "finish_s: must be in 0..86400, got -1"),
        (pb.DrainRequest(role=ATTENTION, finish_s=float("nan")), "finish_s: must be in 0..86400, got nan"),
        (pb.DrainRequest(role=pb.ROLE_ROUTER, undo=True), "undo: a router that leaves cannot be held back"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, request_: pb.DrainRequest, words: str) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as cell:
            assert await _refusal(cell.cluster.Drain(request_)) == (_INVALID, words)
            assert (await cell.status()).ready

    run(test)
