"""Three minutes of random faults every few seconds; `moonshard chaos --soak 30m` goes on for longer."""

from collections.abc import Callable

import pytest

from moonshard_cluster.chaos.faults import Fault
from moonshard_cluster.chaos.run import Experiment
from moonshard_cluster.chaos.soak import soak
from moonshard_cluster.client import Client
from tests.integration.cells import CommandLineCell

SOAK_S = 180.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_fails_changes_or_grows(up: Callable[..., CommandLineCell]) -> None:
    cell = up("--attention", "2", "--replicas", "2", "--fault-hooks", "2")
    experiment = Experiment(list(Fault), every_s=3.0, fault_s=2.0, num_streams=16, max_tokens=200)
    with Client(cell.router_address) as client:
        report = soak(client, experiment, SOAK_S, print)
    assert report.passed, report
    assert report.resources, "nothing was looked at"
