"""A shard's network is cut both ways, or loses packets: streams wait or go round it, and none fails or changes."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moonshard_cluster.chaos.streams import run_once, run_until
from moonshard_cluster.chaos.verdict import Report, judge
from tests.integration.network_cells import NetworkCell, network_cell
from tests.integration.networks import why_not

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

LOAD = 4, 60, 200.0
FAULT_S = 10.0
LOSS = 0.3


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "with replicas"])
def cell(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NetworkCell]:
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("network")
    with network_cell(tiny_checkpoint, folder, num_shards=2, num_replicas=request.param) as started:
        yield started


def _suffers(cell: NetworkCell, fault: Callable[[int], None]) -> Report:
    """The verdict on a load while the link's port has the fault for FAULT_S."""
    undisturbed = run_once(cell.client, *LOAD)
    over = threading.Event()
    results = run_until(over, cell.client, *LOAD)
    try:
        fault(cell.port())
        time.sleep(FAULT_S)  # how long it lasts, not a wait for something
        num_dropped = cell.network.heal()
    finally:
        cell.network.heal()
        over.set()
        report = judge(undisturbed, results(), ["network"], None)
    assert num_dropped > 0, "nobody noticed the fault"
    return report


def test_a_link_cut_both_ways(cell: NetworkCell) -> None:
    report = _suffers(cell, cell.network.cut)
    assert report.passed, report


def test_packet_loss(cell: NetworkCell) -> None:
    report = _suffers(cell, lambda port: cell.network.lose(port, LOSS))
    assert report.passed, report
