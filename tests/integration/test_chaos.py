"""The promises about failures, each proven with real processes that really die, stop or lie. Slow, but for one cell."""

import threading
from collections.abc import Callable

import pytest

from moonshard_cluster.chaos.faults import Fault
from moonshard_cluster.chaos.run import Experiment, await_ready, run_experiment
from moonshard_cluster.chaos.streams import run_once, run_until
from moonshard_cluster.chaos.verdict import Report, judge
from moonshard_cluster.client import Client
from moonshard_cluster.local.rolling import restart_workers
from tests.integration.cells import CommandLineCell

Up = Callable[..., CommandLineCell]
HOOKS = ["--fault-hooks", "2"]
TRANSPORTS = pytest.mark.parametrize("transport", ["links", "all_to_all"])
RECOVERY_S = 60.0
TIMES = 3  # `moonshard chaos` does it as often as one likes


def suffers(cell: CommandLineCell, fault: Fault, target: str, times: int = 1, fault_s: float = 2.0) -> Report:
    with Client(cell.router_address) as client:
        max_tokens = 200 if client.status().transport == "links" else 50  # a step takes ten times as long on gloo
        experiment = Experiment([fault], target, times, 0.3, fault_s, num_streams=8, max_tokens=max_tokens)
        return run_experiment(client, experiment, print)


def test_a_shard_that_lies_and_one_that_stops_cost_nothing_but_time(up: Up) -> None:
    cell = up("--replicas", "2", "--shards", "4", *HOOKS)
    for fault in (Fault.CORRUPT, Fault.STOP):
        report = suffers(cell, fault, "expert")
        assert report.passed, report


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "shape",
    [[], ["--replicas", "2"], ["--transport", "all_to_all"]],
    ids=["alone", "with replicas", "all_to_all"],
)
def test_every_fault_of_a_shard(shape: list[str], up: Up) -> None:
    cell = up("--attention", "2", *HOOKS, *shape)
    for fault in Fault:
        report = suffers(cell, fault, "expert", TIMES)
        assert report.passed, report


@pytest.mark.slow
@pytest.mark.timeout(400)
@TRANSPORTS
def test_every_fault_of_an_attention_worker(transport: str, up: Up) -> None:
    cell = up("--attention", "2", "--transport", transport)
    for fault in (Fault.KILL, Fault.STOP, Fault.SLOW):
        report = suffers(cell, fault, "attention", TIMES)
        assert report.passed, report


@pytest.mark.slow
@pytest.mark.timeout(400)
@TRANSPORTS
def test_every_worker_is_restarted_under_load(transport: str, up: Up) -> None:
    cell, over = up("--attention", "2", "--transport", transport), threading.Event()
    with Client(cell.router_address) as client:
        undisturbed = run_once(client, 8, 200, 120.0)
        results = run_until(over, client, 8, 200, 120.0)
        pids = {worker.pid for worker in client.status().workers[1:]}
        try:
            restart_workers(client, RECOVERY_S, print)
            await_ready(client, RECOVERY_S)
            assert not pids & {worker.pid for worker in client.status().workers[1:]}
        finally:
            over.set()
            report = judge(undisturbed, results(), ["rolling restart"], None)
    assert report.passed, report
