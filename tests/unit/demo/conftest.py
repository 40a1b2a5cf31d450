"""One tiny demo checkpoint for the tests that only read it."""

from pathlib import Path

import pytest

from moonshard_cluster.demo.checkpoint import write_demo
from moonshard_cluster.demo.spec import DemoSpec


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "tiny"
    write_demo(path, DemoSpec.tiny())
    return path
