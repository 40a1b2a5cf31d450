from pathlib import Path

import pytest
from typer.testing import CliRunner

from moonshard.errors import ConfigError
from moonshard_cluster.cli import app
from moonshard_cluster.commands.placement import ranges
from moonshard_cluster.load.matrix import to_line
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


def test_neighbours_are_shown_as_ranges() -> None:
    assert ranges((7, 0, 1, 2, 9, 10)) == "0..2, 7, 9..10"
