"""An operator who allows it is served without a lost shard; callers learn of it from the call's trailing metadata."""

from pathlib import Path
from typing import Any

import pytest

from moonshard.router.membership import Membership
from moonshard.topology import Topology
from moonshard.v1 import control_pb2 as pb
from tests.unit.router.router_peers import collect, generate_request, ready_cell, run, small_config

FLAG = "moonshard-degraded-tokens"


async def _flag(call: Any) -> str | None:
    await collect(call)
    return dict(await call.trailing_metadata()).get(FLAG)


def test_degraded_tokens_are_in_the_trailing_metadata(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as cell:
            worker = cell.attention[0]
            call = cell.inference.Generate(generate_request())
            sequence = (await worker.next("admit")).sequences[0]
            await worker.output(sequence.request_id, list(b"a"), num_degraded_tokens=3)
            await worker.output(sequence.request_id, list(b"b"), num_degraded_tokens=1)
            await worker.finish(sequence.request_id)
            assert await _flag(call) == "4"
            whole = cell.inference.Generate(generate_request())
            await worker.answer("x")
            assert await _flag(whole) is None

    run(test)


def test_the_cell_serves_on_without_a_shard_where_it_may(tmp_path: Path) -> None:
    async def test() -> None:
        config = small_config(tmp_path, timeouts={"degraded_after_s": 0.5, "failover_s": 0.2})
        async with ready_cell(config) as cell:
            cell.shards[1].call.cancel()
            status = await cell.until(lambda status: status.coverage.num_covered == 8)
            assert status.ready
            call = cell.inference.Generate(generate_request())
            while not (message := await cell.attention[0].received.get()).HasField("admit"):
                pass
            await cell.attention[0].finish(message.admit.sequences[0].request_id)
            assert (await collect(call))[-1].HasField("finish")

    run(test)


@pytest.mark.parametrize(("num_left", "serves"), [(4, True), (3, True), (2, True), (1, False)])
def test_with_less_than_half_of_the_experts_it_does_not(num_left: int, serves: bool) -> None:
    state = Membership(Topology(8, 4, 1), "c", is_formed=True, may_degrade=True)
    for rank in range(num_left):
        state = _with(state, pb.ROLE_EXPERT, rank, range(2 * rank, 2 * rank + 2))
    state = _with(state, pb.ROLE_ATTENTION, 0, range(0))
    assert state.is_ready == serves


def _with(state: Membership, role: pb.Role.ValueType, rank: int, experts: range) -> Membership:
    from moonshard.router.members import Credits, Role, Worker, WorkerId

    worker_id = WorkerId(Role.EXPERT if role == pb.ROLE_EXPERT else Role.ATTENTION, rank)
    state, _ = state.join(Worker(worker_id, 7, "here", "here:1", experts, "c"))
    state, _ = state.ready(worker_id, "unix:/x", Credits(16, 4, 2, 8) if role == pb.ROLE_ATTENTION else None)
    return state
