"""What the router does about sentinels' alarms."""

from pathlib import Path

import pytest

from moonshard.v1 import control_pb2 as pb
from tests.unit.router.router_peers import ready_cell, run, small_config


def test_two_copies_that_disagree_verify_their_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path, num_replicas=2)) as cell:
            found = pb.Alarm(kind=pb.Alarm.KIND_DISAGREEMENT, ranks=[1, 3], layer=2, experts=[9, 12])
            await cell.attention[0].send(alarm=found)
            for rank in (1, 3):
                await cell.shards[rank].next("verify")
            assert cell.shards[0].received.empty()
            assert cell.router.cell.losses.num_damaged == 0

    run(test)
    assert "attention-0, shard 1, layer 2, expert 9, 12: expert workers 1, 3 disagree" in caplog.text


def test_damaged_weights_are_counted_by_shard_layer_and_expert(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path)) as cell:
            found = pb.Alarm(kind=pb.Alarm.KIND_WEIGHTS, ranks=[1], layer=2, experts=[9])
            await cell.shards[1].send(alarm=found)
            await cell.shards[1].send(heartbeat=pb.Heartbeat(resident_bytes=3))
            await cell.until(lambda status: any(worker.resident_bytes == 3 for worker in status.workers))
            assert cell.router.cell.losses.num_damaged == 1

    run(test)
    assert "expert-1, shard 1, layer 2, expert 9: damaged weights" in caplog.text
