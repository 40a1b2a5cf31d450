"""Dashboards as operators expect them (ids, variables, units, descriptions), and in step with their source."""

import re
import subprocess
import sys
from typing import Any

import promql_parser
import pytest

from tests.boards import boards, filled_in, panels, queries

BOARDS = boards()


def test_the_files_are_what_their_source_says() -> None:
    command = [sys.executable, "-m", "moonshard_cluster.boards", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert list(BOARDS) == ["attention.json", "cluster.json", "experts.json", "router.json"]


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_board_can_be_provisioned(board: dict[str, Any]) -> None:
    assert re.fullmatch(r"moonshard-[a-z]+", board["uid"])
    assert board["title"].startswith("moonshard / ")
    assert (board["id"], board["editable"], board["tags"]) == (None, False, ["moonshard"])
    assert board["schemaVersion"] >= 39
    assert (board["refresh"], board["time"]["from"]) == ("10s", "now-1h")
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert {"namespace", "model_name"} <= set(variables)
    used = set(
        re.findall(r"\$(\w+)", " ".join(target["expr"] for panel in panels(board) for target in panel["targets"]))
    )
    assert used - {"__rate_interval"} == set(variables) - {"datasource"}, "variables used, and variables there"


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_panel_has_its_source_unit_and_description(board: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels(board):
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_panels_do_not_overlap(board: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.board}: {query.panel}")
def test_a_query_parses_and_leaves_the_interval_to_grafana(query: Any) -> None:
    promql_parser.parse(filled_in(query.expression))
    for ranged in re.findall(r"\[(.*?)\]", query.expression):
        assert ranged == "$__rate_interval"
