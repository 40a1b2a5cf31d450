"""What `moonshard chaos` makes of its observations, and whom it picks."""

import os
import random
import signal
import subprocess
import sys
import threading

import pytest

from moonshard.errors import ConfigError
from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.chaos.faults import Fault, Victim, choose, inject, victims
from moonshard_cluster.chaos.streams import StreamResult
from moonshard_cluster.chaos.verdict import judge

UNDISTURBED = [StreamResult(0, (1, 2, 3), 0.1), StreamResult(1, (4, 5, 6), 0.2)]
FOUND = [Victim("attention-0", 7), Victim("expert-0", 8), Victim("expert-1", 9)]


def test_the_same_outputs_pass_whatever_their_pauses() -> None:
    report = judge(UNDISTURBED, [*UNDISTURBED, StreamResult(0, (1, 2, 3), 9.0)], ["kill expert-0"], None)
    assert report.passed
    assert (report.num_streams, report.longest_pause_s, report.undisturbed_pause_s) == (3, 9.0, 0.2)


def test_a_pause_beyond_the_limit_fails() -> None:
    assert not judge(UNDISTURBED, [StreamResult(0, (1, 2, 3), 0.6)], [], 0.5).passed


def test_failed_lost_and_different_are_told_apart() -> None:
    disturbed = [
        StreamResult(0, (1,), 0.0, "UNAVAILABLE"),
        StreamResult(0, (1, 2), 0.0),
        StreamResult(0, (1, 2, 2, 3), 0.0),
        StreamResult(1, (4, 5, 7), 0.0),
        StreamResult(1, (4, 5, 6), 0.0),
    ]
    report = judge(UNDISTURBED, disturbed, [], None)
    assert (report.num_failed, report.num_lost, report.num_different, report.passed) == (1, 2, 1, False)
    assert report.errors == ("UNAVAILABLE",)
    assert report.to_dict()["passed"] is False


def test_victims_are_workers_that_are_ready() -> None:
    status = pb.GetStatusResponse(
        workers=[
            pb.WorkerStatus(role=pb.ROLE_ROUTER, pid=1, state=pb.WORKER_STATE_READY),
            pb.WorkerStatus(role=pb.ROLE_EXPERT, rank=3, pid=2, state=pb.WORKER_STATE_READY),
            pb.WorkerStatus(role=pb.ROLE_ATTENTION, rank=1, pid=3, state=pb.WORKER_STATE_LOADING),
        ]
    )
    assert victims(status) == [Victim("expert-3", 2)]


@pytest.mark.parametrize(
    ("fault", "target", "names"),
    [
        (Fault.KILL, "any", {"attention-0", "expert-0", "expert-1"}),
        (Fault.KILL, "expert", {"expert-0", "expert-1"}),
        (Fault.STOP, "expert-1", {"expert-1"}),
        (Fault.CORRUPT, "any", {"expert-0", "expert-1"}),
    ],
)
def test_the_choice_fits_the_fault_and_the_target(fault: Fault, target: str, names: set[str]) -> None:
    rng = random.Random(1)
    chosen = [choose(fault, target, FOUND, rng) for _ in range(50)]
    assert {victim.name for victim in chosen if victim} == names


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="only shards can suffer 'partition'"):
        choose(Fault.PARTITION, "attention-0", FOUND, random.Random(1))
    assert choose(Fault.KILL, "expert-9", FOUND, random.Random(1)) is None


def test_a_process_is_really_stopped_and_goes_on() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        seen = threading.Event()

        def wait(_: float) -> None:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            seen.set()

        inject(Fault.STOP, Victim("it", process.pid), 0.1, wait)
        assert seen.is_set()
        inject(Fault.KILL, Victim("it", process.pid), 0.0)
        assert process.wait(5) == -signal.SIGKILL
    inject(Fault.KILL, Victim("it", process.pid), 0.0)
