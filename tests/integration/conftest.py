"""One cell that many tests share, and cells of the command line."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moonshard_cluster.client import Client
from moonshard_cluster.local.supervisor import LocalCluster
from tests.conftest import REPOSITORY
from tests.integration.cells import EXACT, OPEN, CommandLineCell, running_cell
from tests.integration.gateway_cells import HttpCell, make_loud, running_gateway
from tests.integration.prometheus_server import running_prometheus


@pytest.fixture(scope="session")
def shared_cell(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LocalCluster, Client]]:
    """The default shape: one attention worker, eight shards, links."""
    limits = {"max_num_seqs": 16, "num_blocks": 256, "prefill_chunk": 64}
    logs = tmp_path_factory.mktemp("logs")
    with running_cell(tiny_checkpoint, logs, **EXACT, model_name="tiny", attention=limits, metrics=OPEN) as cell:
        yield cell


@pytest.fixture
def client(shared_cell: tuple[LocalCluster, Client]) -> Client:
    return shared_cell[1]


@pytest.fixture
def prometheus(client: Client, tmp_path: Path) -> Iterator[str]:
    """A real Prometheus that scrapes all processes of the shared cell and evaluates our rules; its address."""
    targets = [worker.metrics_address for worker in client.status().workers]
    rules = sorted((REPOSITORY / "helm" / "moonshard" / "rules").glob("*.yaml"))
    with running_prometheus(targets, tmp_path, rules) as address:
        yield address


@pytest.fixture
def up(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., CommandLineCell]]:
    """Start `moonshard up` on the tiny checkpoint; ended with the test."""
    started: list[CommandLineCell] = []

    def start(*arguments: str) -> CommandLineCell:
        started.append(CommandLineCell(str(tiny_checkpoint), "--log-dir", str(tmp_path / "logs"), *arguments))
        return started[-1]

    yield start
    for cell in started:
        cell.close()


@pytest.fixture(scope="session")
def http_cell(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpCell]:
    """A cell with its HTTP gateway, whose model begins tool calls and ends thoughts."""
    folder = tmp_path_factory.mktemp("gateway")
    checkpoint = folder / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    make_loud(checkpoint)
    with running_gateway(checkpoint, folder / "logs") as cell:
        yield cell
