"""The gateway as a member of `moonshard up`: shown, told of when it dies, and gone with the cell."""

import json
import re
import time
import urllib.request
from collections.abc import Callable

import psutil
import pytest

from tests.integration.cells import CommandLineCell

Up = Callable[..., CommandLineCell]


def _gateway(cell: CommandLineCell) -> psutil.Process:
    (found,) = (member for member in cell.members if "moonshard_cluster.local.gateway_program" in member.cmdline())
    return found


def _url(cell: CommandLineCell) -> str:
    found = re.search(r"OpenAI API on (\S+)/v1", cell.output)
    assert found
    return found[1]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as answer:
            return bool(json.load(answer)["data"])
    except OSError:
        return False


def test_it_serves_beside_the_cell_is_started_again_and_ends_with_it(up: Up) -> None:
    cell = up("--http-port", "0")
    url = _url(cell)
    assert _answers(url)
    assert not any("key" in argument for argument in _gateway(cell).cmdline())
    _gateway(cell).kill()
    deadline = time.monotonic() + 30
    while "gateway" not in cell.output or not _answers(url):
        assert time.monotonic() < deadline, cell.output
        time.sleep(0.1)
    assert "SIGKILL" in cell.output
    cell.interrupt()
    assert cell.finish(20) == 0
    assert cell.wait_gone(1) == []
    assert not _answers(url)


@pytest.mark.slow
def test_without_restarts_its_death_ends_the_cell(up: Up) -> None:
    cell = up("--http-port", "0", "--no-restart")
    _gateway(cell).kill()
    assert cell.finish(30) == 1
    assert "gateway" in cell.output
    assert "SIGKILL" in cell.output
    assert cell.wait_gone(5) == []


@pytest.mark.slow
def test_it_does_not_outlive_a_killed_launcher(up: Up) -> None:
    cell = up("--http-port", "0")
    cell.member("launcher").kill()
    cell.process.wait(10)
    assert cell.wait_gone(10) == []
