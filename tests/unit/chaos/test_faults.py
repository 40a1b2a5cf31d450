"""Faults are drawn from what a cell can suffer."""

import random

import pytest

from moonshard.errors import ConfigError
from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.chaos.faults import Fault, Victim, check_allowed, choose, victims

FOUND = [Victim("expert-0", 10), Victim("attention-0", 11), Victim("expert-1", 12)]


@pytest.mark.parametrize("fault", [Fault.CORRUPT, Fault.PARTITION])
def test_a_fault_that_shards_would_pass_over_is_refused(fault: Fault) -> None:
    with pytest.raises(ConfigError, match=f"faults: '{fault.value}' needs a cell started with --fault-hooks"):
        check_allowed([Fault.KILL, fault], pb.GetStatusResponse())
    check_allowed([fault], pb.GetStatusResponse(fault_hooks_s=30.0))
    check_allowed([Fault.KILL, Fault.STOP, Fault.SLOW], pb.GetStatusResponse())


def test_a_victim_is_of_the_kind_that_was_asked_for() -> None:
    rng = random.Random(0)
    drawn = {(fault, choose(fault, "any", FOUND, rng)) for fault in Fault for _ in range(50)}
    assert {victim for fault, victim in drawn if fault is Fault.KILL} == set(FOUND)
    assert {victim for fault, victim in drawn if fault is Fault.CORRUPT} == {FOUND[0], FOUND[2]}
    assert choose(Fault.KILL, "expert-1", FOUND, rng) == FOUND[2]
    assert choose(Fault.KILL, "expert-7", FOUND, rng) is None
    with pytest.raises(ConfigError, match="target: only shards can suffer 'corrupt', got 'attention-0'"):
        choose(Fault.CORRUPT, "attention-0", FOUND, rng)


def test_only_workers_that_are_ready_are_victims() -> None:
    ready, loading = pb.WORKER_STATE_READY, pb.WORKER_STATE_LOADING
    workers = [
        pb.WorkerStatus(role=pb.ROLE_ROUTER, pid=9, state=ready),
        pb.WorkerStatus(role=pb.ROLE_EXPERT, rank=0, pid=10, state=ready),
        pb.WorkerStatus(role=pb.ROLE_EXPERT, rank=1, pid=11, state=loading),
    ]
    assert victims(pb.GetStatusResponse(workers=workers)) == [Victim("expert-0", 10)]
