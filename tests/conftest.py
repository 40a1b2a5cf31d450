"""Fixtures that every test may use."""

import signal
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"


def pytest_configure() -> None:
    """Tests started in the background of a script ignore SIGINT, and so would the cells that they stop by it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the published tokenizer, template and configuration of K2.5; tests skip where it is absent."""
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip("the published K2.5 files are not here")
    return data


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo checkpoint of a few megabytes: 384 experts, one dense and two MoE layers."""
    from moonshard_cluster.demo.checkpoint import write_demo
    from moonshard_cluster.demo.spec import DemoSpec

    path = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_demo(path, DemoSpec.tiny())
    return path
