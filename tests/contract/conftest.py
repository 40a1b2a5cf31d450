"""Fixtures of the transport tests."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transport_cluster import KINDS, Cell

from moonshard.transport.contract import WireSpec

# torch's TCPStore looks up the name of 127.0.0.1 in DNS; where DNS drops packets each loss costs this long.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")

MakeCell = Callable[..., Cell]


@pytest.fixture(params=KINDS)
def make_cell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeCell]:
    """make_cell(spec, num_sources=1): a running cell of every transport in turn."""
    cells: list[Cell] = []

    def make(spec: WireSpec, num_sources: int = 1) -> Cell:
        cells.append(Cell(request.param, spec, num_sources, tmp_path))
        return cells[-1]

    yield make
    for cell in cells:
        cell.close()
