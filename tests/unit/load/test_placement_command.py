from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from moonshard.errors import ConfigError
from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.cli import app
from moonshard_cluster.commands.placement import ranges, render_shown
from moonshard_cluster.load.matrix import to_line
from moonshard_cluster.load.placements import from_cell, read_layers
from tests.unit.load.load_samples import small_load


def placement(tmp_path: Path, *arguments: str) -> str:
    (tmp_path / "load.jsonl").write_text(to_line(small_load()) + "\n")
    done = CliRunner().invoke(app, ["placement", *arguments, "--load", str(tmp_path / "load.jsonl")])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_show_tells_who_holds_what_and_how_even_it_is(tmp_path: Path) -> None:
    lines = placement(tmp_path, "show").splitlines()
    assert lines[1].split() == ["0", "0..3", "96", "1.78"]
    assert lines[2].split() == ["1", "4..7", "12", "0.22"]
    assert lines[-1] == "balancedness 0.772 on average over 2 layers, 0.543 in layer 4"


def test_plan_says_which_layers_pay(tmp_path: Path) -> None:
    lines = placement(tmp_path, "plan", "--redundant", "2", "--row-us", "1000", "--expert-us", "0").splitlines()
    even, skewed = lines[1].split(), lines[2].split()
    assert (even[:4], even[-1]) == (["3", "1.000", "1.000", "0"], "no")
    assert (skewed[0], skewed[1], skewed[-1]) == ("4", "0.543", "yes")
    assert float(skewed[2]) > 0.95
    assert "1 of 2 layers pay: 2 copies to load" in " ".join(lines)


def test_plan_refuses_more_copies_than_slots(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="slots_per_shard: 16 copies need more than 8 slots"):
        placement(tmp_path, "plan", "--min-copies", "2")


def test_what_pays_can_be_saved_and_read_again(tmp_path: Path) -> None:
    arguments = ("--redundant", "2", "--row-us", "1000", "--expert-us", "0", "--save", str(tmp_path / "plan.json"))
    placement(tmp_path, "plan", *arguments)
    layers, generation = read_layers(tmp_path / "plan.json")
    assert (list(layers), generation) == ([4], 0)
    assert [expert for held in layers[4] for expert in held].count(2) == 2  # the hot one


@pytest.mark.parametrize("text", ["", "[]", '{"layers": {"1": 3}}', '{"layers": {"x": [[0]]}}'])
def test_a_file_that_is_no_placement(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ConfigError, match=r"file: .*plan.json is not a placement of"):
        read_layers(tmp_path / "plan.json")


def test_apply_takes_a_file_or_auto(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="apply: takes a file, or --auto"):
        placement(tmp_path, "apply")


def test_a_running_cells_placement_is_shown() -> None:
    layers = [pb.PlacedLayer(layer=3, shards=[pb.HeldExperts(experts=it) for it in ((0, 1, 5), (2, 3, 4, 5))])]
    pins = [pb.Pin(layer=3, expert=5, shards=[0, 1])]
    placed = from_cell(pb.GetPlacementResponse(generation=7, layers=layers, slots_per_shard=4, pins=pins))
    console = Console(width=100, record=True)
    console.print(render_shown(small_load(), placed))
    lines = console.export_text().splitlines()
    assert lines[-3:] == [
        "placement 7, 4 slots a shard in each layer",
        "layer 3: 2 away from their blocks, 1 copies beyond the first",
        "layer 3: expert 5 is pinned to shard 0, 1",
    ]


def test_neighbours_are_shown_as_ranges() -> None:
    assert ranges((7, 0, 1, 2, 9, 10)) == "0..2, 7, 9..10"
