"""A shard's network is cut both ways, or loses packets: streams wait or go round it, and none fails or changes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.network_cells import NetworkCell, network_cell, suffer
from tests.integration.networks import why_not

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

LOAD = 4, 60, 200.0
FAULT_S = 10.0
LOSS = 0.3


@pytest.fixture(params=[1, 2], ids=["alone", "with replicas"])
def cell(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path: Path) -> Iterator[NetworkCell]:
    """A fresh one each time: with replicas a copy that had a fault is not asked again while the other answers."""
    if reason := why_not():
        pytest.skip(reason)
    with network_cell(tiny_checkpoint, tmp_path, num_shards=2, num_replicas=request.param) as started:
        yield started


def test_a_link_cut_both_ways(cell: NetworkCell) -> None:
    report = suffer(cell, cell.network.cut, LOAD, FAULT_S)
    assert report.passed, report


def test_packet_loss(cell: NetworkCell) -> None:
    if cell.client.status().num_replicas > 1:
        pytest.skip("workers choose which copy they ask: the lossy link may carry nothing at all")
    report = suffer(cell, lambda port: cell.network.lose(port, LOSS), LOAD, FAULT_S)
    assert report.passed, report
