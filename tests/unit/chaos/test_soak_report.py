"""What a soak makes of what processes hold, and of what it is told."""

import os

import pytest

from moonshard.errors import ConfigError
from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.chaos.resources import Growth, Holding, growth, hold, members
from moonshard_cluster.chaos.soak import seconds_of
from moonshard_cluster.chaos.streams import StreamResult
from moonshard_cluster.chaos.verdict import judge

MB = 1_000_000
CALM = Holding(100 * MB, 20)


def test_what_wavers_is_flat_and_what_grows_is_not() -> None:
    wavering = [Holding(100 * MB + (n % 3) * 5 * MB, 20 + n % 2) for n in range(40)]
    assert growth("router", wavering) == Growth("router", Holding(105 * MB, 20), Holding(105 * MB, 20))
    leaking = growth("router", [Holding(100 * MB + n * MB, 20) for n in range(40)])
    assert leaking is not None
    assert not leaking.is_flat
    assert str(leaking) == "router: 104 to 134 MB, 20 to 20 descriptors"
    handles = growth("router", [Holding(100 * MB, 20 + n) for n in range(40)])
    assert handles is not None
    assert not handles.is_flat
    assert growth("expert-0", [CALM] * 7) is None, "too little was seen of it"


def test_growth_fails_the_verdict() -> None:
    same = [StreamResult(0, (1, 2), 0.1)]
    report = judge(same, same, [], None)
    assert report.passed
    report = judge(same, same, [], None, (Growth("router", CALM, CALM), Growth("x", CALM, Holding(200 * MB, 20))))
    assert [it.name for it in report.grown] == ["x"]
    assert not report.passed


def test_members_are_the_router_its_launcher_and_who_is_ready() -> None:
    ready = pb.WORKER_STATE_READY
    workers = [
        pb.WorkerStatus(role=pb.ROLE_ROUTER, pid=os.getpid(), state=ready),
        pb.WorkerStatus(role=pb.ROLE_EXPERT, rank=2, pid=10, state=ready),
        pb.WorkerStatus(role=pb.ROLE_EXPERT, rank=3, pid=11, state=pb.WORKER_STATE_LOADING),
    ]
    found = members(pb.GetStatusResponse(workers=workers))
    assert found == {"router": os.getpid(), "launcher": os.getppid(), "expert-2": 10}


def test_a_process_is_looked_at_while_it_is_there() -> None:
    own = hold(os.getpid())
    assert own is not None
    assert own.resident_bytes > MB
    assert own.num_descriptors >= 3
    assert hold(2**22 + 1) is None


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("30m", 1800.0), ("1.5h", 5400.0)])
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "0s", "m", "-1m", "1e9h", "999h"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--soak: must be like 90s"):
        seconds_of(text)
