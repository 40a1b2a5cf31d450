"""The control stream, readiness, health, reflection, drain and loss, through a real server."""

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from moonshard.errors import ConfigError
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
    started_router,
)

INFERENCE = "moonshard.v1.Inference"


async def _health(cell: PeerCell, service: str) -> str:
    request = health_pb2.HealthCheckRequest(service=service)
    response = await health_pb2_grpc.HealthStub(cell.channel).Check(request)
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    return name


async def _healthy(cell: PeerCell) -> dict[str, str]:
    return {service: await _health(cell, service) for service in ("", INFERENCE, "moonshard.v1.Workers")}


async def _fails(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(call)
    return caught.value


def test_a_cell_becomes_ready_step_by_step(tmp_path: Path) -> None:
    async def test() -> None:
        async with started_router(small_config(tmp_path)) as cell:
            error = await _fails(cell.inference.Generate(generate_request()))
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert error.details() == (
                "not ready: expert-0 has not joined, expert-1 has not joined, attention-0 has not joined"
            )
            assert await _healthy(cell) == {
                "": "NOT_SERVING",
                INFERENCE: "NOT_SERVING",
                "moonshard.v1.Workers": "SERVING",
            }
            async with (
                PeerWorker(cell.channel, join_message(pb.ROLE_ATTENTION, 0)) as attention,
                PeerWorker(cell.channel, join_message(pb.ROLE_EXPERT, 1)) as second,
                PeerWorker(cell.channel, join_message(pb.ROLE_EXPERT, 0)) as first,
            ):
                epochs = [(await worker.next("welcome")).epoch for worker in (attention, second, first)]
                await first.ready_shard()
                await second.send(heartbeat=pb.Heartbeat(loaded_bytes=40, total_bytes=100))
                status = await cell.until(lambda status: any(w.loaded_bytes == 40 for w in status.workers))
                assert (status.coverage.num_covered, status.ready) == (8, False)
                error = await _fails(cell.inference.Generate(generate_request()))
                assert error.details() == "not ready: expert-1 is loading (40 %), attention-0 is loading"
                await second.ready_shard()
                members = await attention.next("members")
                assert {members.epoch, *epochs} == {members.epoch}
                assert [(s.shard, s.data_address) for s in members.shards] == [
                    (0, "unix:/shard-0"),
                    (1, "unix:/shard-1"),
                ]
                await attention.ready_attention()
                await cell.until(lambda status: status.ready)
                assert set((await _healthy(cell)).values()) == {"SERVING"}

    run(test)


def test_status_tells_workers_coverage_and_rates(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as cell:
            for tokens in (100, 150):
                await cell.attention[0].send(heartbeat=pb.Heartbeat(tokens=tokens, resident_bytes=5))
                await asyncio.sleep(0.05)
            status = await cell.until(lambda status: status.tokens_per_second > 0)
        assert [(w.role, w.rank) for w in status.workers] == [
            (pb.ROLE_ROUTER, 0), (pb.ROLE_EXPERT, 0), (pb.ROLE_EXPERT, 1), (pb.ROLE_ATTENTION, 0)
        ]  # fmt: skip
        assert all(worker.state == pb.WORKER_STATE_READY for worker in status.workers)
        assert [(w.first_expert, w.end_expert) for w in status.workers[1:3]] == [(0, 8), (8, 16)]
        covered = status.coverage
        assert (covered.num_experts, covered.num_covered, covered.min_copies, covered.max_copies) == (16, 16, 1, 1)
        assert (status.num_shards, status.num_attention, status.transport) == (2, 1, "links")
        assert status.workers[3].resident_bytes == 5
        assert status.workers[0].resident_bytes > 0
        assert 0 < status.tokens_per_second < 50 / 0.04

    run(test)


@pytest.mark.parametrize(
    ("join", "words"),
    [
        (join_message(pb.ROLE_EXPERT, 0), "expert-0 (pid 1000) holds this rank already"),
        (join_message(pb.ROLE_EXPERT, 2), "expert ranks of this cell are 0..1, got 2"),
        (join_message(pb.ROLE_ATTENTION, -1), "attention ranks of this cell are 0..0, got -1"),
        (join_message(pb.ROLE_ROUTER, 0), "must be attention or expert"),
        (join_message(pb.ROLE_EXPERT, 1, end_expert=12), "must hold experts [8, 16), got experts [8, 12)"),
        (join_message(pb.ROLE_EXPERT, 1, checkpoint_id="other"), "the cell serves 'c0ffee', expert-1 has 'other'"),
    ],
)
def test_a_worker_that_does_not_belong_is_refused(tmp_path: Path, join: pb.Join, words: str) -> None:
    async def test() -> None:
        async with (
            started_router(small_config(tmp_path)) as cell,
            PeerWorker(cell.channel, join_message(pb.ROLE_EXPERT, 0)) as rightful,
        ):
            await rightful.next("welcome")
            async with PeerWorker(cell.channel, join) as refused:
                assert await refused.call.code() == grpc.StatusCode.FAILED_PRECONDITION
                assert words in await refused.call.details()
            await rightful.send(heartbeat=pb.Heartbeat(resident_bytes=1))
            await cell.until(lambda status: [w.resident_bytes for w in status.workers[1:]] == [1])

    run(test)


@pytest.mark.parametrize(
    ("role", "body", "words"),
    [
        (pb.ROLE_EXPERT, {"ready": pb.Ready()}, "data_address"),
        (pb.ROLE_ATTENTION, {"ready": pb.Ready()}, "credits"),
        (pb.ROLE_ATTENTION, {"ready": pb.Ready(credits=pb.Credits(block_size=16))}, "credits"),
    ],
)
def test_a_worker_that_breaks_the_protocol_is_lost(tmp_path: Path, role: Any, body: Any, words: str) -> None:
    async def test() -> None:
        async with (
            started_router(small_config(tmp_path)) as cell,
            PeerWorker(cell.channel, join_message(role, 0)) as worker,
        ):
            await worker.next("welcome")
            await worker.send(**body)
            assert await worker.call.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert words in await worker.call.details()
            await cell.until(lambda status: len(status.workers) == 1)

    run(test)


def test_the_first_message_must_be_a_join(tmp_path: Path) -> None:
    async def test() -> None:
        async with started_router(small_config(tmp_path)) as cell:
            worker = PeerWorker(cell.channel, join_message(pb.ROLE_EXPERT, 0))
            await worker.send(heartbeat=pb.Heartbeat())
            assert await worker.call.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert await worker.call.details() == "join: must be a stream's first message, got heartbeat"

    run(test)


def test_requests_wait_for_a_lost_shard(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path), max_num_seqs=1) as cell:
            calls = [asyncio.create_task(collect(cell.inference.Generate(generate_request()))) for _ in range(2)]
            await cell.until(lambda status: (status.num_running, status.num_waiting) == (1, 1))
            before = (await cell.status()).epoch
            cell.shards[1].call.cancel()
            status = await cell.until(lambda status: not status.ready)
            assert (status.epoch, status.coverage.num_covered) == (before + 1, 8)
            assert await _health(cell, INFERENCE) == "NOT_SERVING"
            calls.append(asyncio.create_task(collect(cell.inference.Generate(generate_request()))))
            await cell.until(lambda status: status.num_waiting == 2)
            first = await cell.attention[0].next("admit")
            assert [it.shard for it in (await cell.attention[0].next("members")).shards] == [0]
            async with PeerWorker(cell.channel, join_message(pb.ROLE_EXPERT, 1)) as restarted:
                await restarted.next("welcome")
                await restarted.ready_shard()
                await cell.until(lambda status: status.ready)
                members = await cell.attention[0].next("members")
                assert ([it.shard for it in members.shards], members.epoch) == ([0, 1], before + 2)
                await cell.attention[0].finish(first.sequences[0].request_id)
                for _ in range(2):
                    await cell.attention[0].answer("x")
                answers = await asyncio.gather(*calls)
                assert all(responses[-1].HasField("finish") for responses in answers)

    run(test)


@pytest.mark.parametrize("limit_s", [0.0, 0.3])
def test_a_shard_that_stays_away_fails_every_request(tmp_path: Path, limit_s: float) -> None:
    async def test() -> None:
        config = small_config(tmp_path, timeouts={"failover_s": limit_s})
        async with ready_cell(config, max_num_seqs=1) as cell:
            calls = [asyncio.create_task(_fails(cell.inference.Generate(generate_request()))) for _ in range(2)]
            await cell.until(lambda status: (status.num_running, status.num_waiting) == (1, 1))
            cell.shards[1].call.cancel()
            words = f"not back within {limit_s:g} s" if limit_s else "expert-1 (pid 1001) lost"
            for error in await asyncio.gather(*calls):
                assert error.code() == grpc.StatusCode.UNAVAILABLE
                assert words in (error.details() or "")
            error = await _fails(cell.inference.Generate(generate_request()))
            assert error.details() == "not ready: expert-1 has not joined"
            async with PeerWorker(cell.channel, join_message(pb.ROLE_EXPERT, 1)) as restarted:
                await restarted.next("welcome")
                await restarted.ready_shard()
                await cell.until(lambda status: status.ready)

    run(test)


def test_a_shard_whose_answers_are_wrong_is_sent_away_and_a_slow_one_is_not(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as cell:
            await cell.attention[0].send(suspicion=pb.Suspicion(shard=0, reason="slow"))
            await cell.attention[0].send(suspicion=pb.Suspicion(shard=1, reason="NaN", is_wrong=True))
            assert (await cell.shards[1].next("shutdown")).reason == "NaN"
            cell.shards[1].call.cancel()
            status = await cell.until(lambda status: not status.ready)
            assert [worker.rank for worker in status.workers if worker.role == pb.ROLE_EXPERT] == [0]
            await cell.attention[0].send(suspicion=pb.Suspicion(shard=1, reason="NaN", is_wrong=True))
            await cell.attention[0].send(heartbeat=pb.Heartbeat(resident_bytes=3))
            await cell.until(lambda status: status.workers[-1].resident_bytes == 3)

    run(test)


def test_a_worker_may_say_why_it_leaves(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path, timeouts={"failover_s": 0})) as cell:
            call = asyncio.create_task(_fails(cell.inference.Generate(generate_request())))
            await cell.attention[0].next("admit")
            await cell.shards[0].send(leave=pb.Leave(reason="tensor x is truncated"))
            await cell.shards[0].call.done_writing()
            assert (await call).details() == "expert-0 (pid 1000) lost: tensor x is truncated"

    run(test)


def test_sequences_of_a_lost_attention_worker_go_on_elsewhere(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path, num_attention=2)) as cell:
            calls = [asyncio.create_task(collect(cell.inference.Generate(generate_request()))) for _ in range(2)]
            first = (await cell.attention[0].next("admit")).sequences[0]
            other = (await cell.attention[1].next("admit")).sequences[0]
            await cell.attention[0].output(first.request_id, list(b"ab"))
            await cell.attention[0].send(heartbeat=pb.Heartbeat(resident_bytes=7))
            await cell.until(lambda status: any(worker.resident_bytes == 7 for worker in status.workers))
            cell.attention[0].call.cancel()
            again = (await cell.attention[1].next("admit")).sequences[0]
            assert (again.request_id, bytes(again.output_token_ids)) == (first.request_id, b"ab")
            for byte in b"cd":
                await cell.attention[1].output(again.request_id, [byte])
            for sequence in (again, other):
                await cell.attention[1].finish(sequence.request_id)
            answers = await asyncio.gather(*calls)
            texts = ["".join(response.text for response in responses) for responses in answers]
            assert sorted(texts) == ["", "abcd"]
            assert (await cell.status()).ready

    run(test)


def test_sequences_of_the_only_attention_worker_wait_for_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as cell:
            call = asyncio.create_task(collect(cell.inference.Generate(generate_request())))
            first = (await cell.attention[0].next("admit")).sequences[0]
            cell.attention[0].call.cancel()
            await cell.until(lambda status: not status.ready)
            async with PeerWorker(cell.channel, join_message(pb.ROLE_ATTENTION, 0)) as restarted:
                await restarted.next("welcome")
                await restarted.next("members")
                await restarted.ready_attention()
                again = await restarted.answer("back")
                assert again.request_id == first.request_id
                assert "".join(response.text for response in await call) == "back"

    run(test)


def test_a_lost_attention_worker_fails_only_its_own_requests_where_nothing_recovers(tmp_path: Path) -> None:
    async def test() -> None:
        config = small_config(tmp_path, num_attention=2, timeouts={"failover_s": 0})
        async with ready_cell(config) as cell:
            lost, kept = (cell.inference.Generate(generate_request()) for _ in range(2))
            await cell.attention[0].next("admit")
            sequence = (await cell.attention[1].next("admit")).sequences[0]
            cell.attention[0].call.cancel()
            error = await _fails(lost)
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert "attention-0 (pid 1000) lost" in (error.details() or "")
            await cell.attention[1].finish(sequence.request_id)
            assert (await collect(kept))[-1].HasField("finish")

    run(test)


def test_a_drain_lets_accepted_requests_finish(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path), max_num_seqs=1) as cell:
            calls = [asyncio.create_task(collect(cell.inference.Generate(generate_request()))) for _ in range(2)]
            await cell.until(lambda status: (status.num_running, status.num_waiting) == (1, 1))
            drain = asyncio.create_task(cell.router.drain())
            await cell.until(lambda status: status.workers[0].state == pb.WORKER_STATE_DRAINING)
            assert set((await _healthy(cell)).values()) == {"NOT_SERVING"}
            error = await _fails(cell.inference.Generate(generate_request()))
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert "draining" in (error.details() or "")
            assert not drain.done()
            for text in ("one", "two"):
                await cell.attention[0].answer(text)
            await drain
            assert [len(responses) > 0 for responses in await asyncio.gather(*calls)] == [True, True]
            close = asyncio.create_task(cell.router.close("SIGTERM"))
            for worker in (*cell.shards, *cell.attention):
                assert (await worker.next("shutdown")).reason == "SIGTERM"
                await worker.call.done_writing()
            await close
            assert not (tmp_path / "router.json").exists()

    run(test)


def test_a_drain_that_takes_too_long_is_cut(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path, timeouts={"drain_s": 0.2})) as cell:
            call = asyncio.create_task(_fails(cell.inference.Generate(generate_request())))
            await cell.until(lambda status: status.num_running == 1)
            await cell.router.drain()
            assert not call.done()
            cell.router.engine.fail_all("the router ended")
            assert (await call).code() == grpc.StatusCode.UNAVAILABLE

    run(test)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_and_describes_our_services(tmp_path: Path, version: str) -> None:
    async def test() -> None:
        async with started_router(small_config(tmp_path)) as cell:
            reflect = cell.channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                reflection_pb2.ServerReflectionRequest.SerializeToString,
                reflection_pb2.ServerReflectionResponse.FromString,
            )
            requests = [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol=INFERENCE),
            ]
            listed, described = await collect(reflect(iter(requests), timeout=LIMIT_S))
        names = {service.name for service in listed.list_services_response.service}
        assert {INFERENCE, "moonshard.v1.Workers", "moonshard.v1.Cluster", "grpc.health.v1.Health"} <= names
        assert described.file_descriptor_response.file_descriptor_proto

    run(test)


def test_health_of_an_unknown_service_is_not_found(tmp_path: Path) -> None:
    async def test() -> None:
        async with started_router(small_config(tmp_path)) as cell:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await _health(cell, "moonshard.v1.Nothing")
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND

    run(test)


def test_metrics_tell_what_happened(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as cell:
            address = json.loads((tmp_path / "router.json").read_text())["metrics_address"]
            before = await asyncio.to_thread(_scrape, address)
            call = asyncio.create_task(collect(cell.inference.Generate(generate_request("abc"))))
            await cell.attention[0].answer("four")
            await call
            await _fails(cell.inference.Generate(generate_request("")))
            after = await asyncio.to_thread(_scrape, address)
        model = 'model_name="small"'
        for reason in ("stop", "length", "abort", "error"):
            assert before[f'moonshard_requests_total{{finish_reason="{reason}",{model}}}'] == 0
        assert before[f'moonshard_router_rejected_total{{{model},reason="queue_full"}}'] == 0
        assert after[f'moonshard_requests_total{{finish_reason="stop",{model}}}'] == 1
        assert after[f'moonshard_router_rejected_total{{{model},reason="invalid"}}'] == 1
        assert after[f"moonshard_prompt_tokens_total{{{model}}}"] == 3
        assert after[f"moonshard_generation_tokens_total{{{model}}}"] == 5
        assert after[f"moonshard_inter_token_latency_seconds_count{{{model}}}"] == 4
        for histogram in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
            assert after[f"moonshard_{histogram}_seconds_count{{{model}}}"] == 1
        assert not [name for name in after if "_created" in name]

    run(test)


def _scrape(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=LIMIT_S) as response:
        lines = response.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    async def test() -> None:
        async with started_router(small_config(tmp_path)) as cell:
            port = int(cell.router.address.rsplit(":", 1)[1])
            with pytest.raises(ConfigError, match=rf"^router\.port: cannot listen on 127\.0\.0\.1:{port}"):
                async with started_router(small_config(tmp_path, router={"port": port})):
                    pass

    run(test)
