"""Fixtures of the transport tests."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moonshard.kernels import links as kernel_links
from moonshard.transport.contract import WireSpec
from tests.contract.transport_cluster import KINDS, Cell

# torch's TCPStore looks up the name of 127.0.0.1 in DNS; where DNS drops packets each loss costs this long.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")

MakeCell = Callable[..., Cell]


def use_engine(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let links opened from here on move their messages by `native` calls (skips where not built) or in `python`."""
    if engine == "python":
        monkeypatch.setattr(kernel_links, "native_links", lambda: None)
    elif kernel_links.native_links() is None:
        pytest.skip("native kernels are not built: run python -m moonshard.kernels")


@pytest.fixture(params=["native", "python"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both engines of the links in turn."""
    use_engine(request.param, monkeypatch)
    return str(request.param)


@pytest.fixture(params=KINDS)
def make_cell(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeCell]:
    """make_cell(spec, num_sources=1): a running cell of every transport in turn."""
    cells: list[Cell] = []
    if request.param.startswith("links"):
        use_engine("python" if request.param.endswith("python") else "native", monkeypatch)

    def make(spec: WireSpec, num_sources: int = 1) -> Cell:
        cells.append(Cell(request.param, spec, num_sources, tmp_path))
        return cells[-1]

    yield make
    for cell in cells:
        cell.close()
