"""Configuration files: whole or in part, and what is said of those that are neither."""

import json
from pathlib import Path
from typing import Any

import pytest

from moonshard.config import CellConfig
from moonshard.errors import ConfigError
from moonshard_cluster.local.plan import plan_cell


def _file(folder: Path, text: str, name: str = "cell.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_part_of_a_configuration_goes_with_flags_that_bring_the_rest(tmp_path: Path, tiny_checkpoint: Path) -> None:
    file = _file(tmp_path, "num_shards = 4\n[timeouts]\nhedge_s = 0.5\ndrain_s = 7.0\n")
    values: dict[str, Any] = {"checkpoint": tiny_checkpoint, "num_shards": None, "timeouts": {"drain_s": 9.0}}
    config = plan_cell(values, file)
    config.run_dir.rmdir()
    assert (config.num_shards, config.timeouts.hedge_s, config.timeouts.drain_s) == (4, 0.5, 9.0)


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    toml = CellConfig.read(_file(tmp_path, 'checkpoint = "/x"\n[router]\nport = 7\n'))
    written = CellConfig.read(_file(tmp_path, json.dumps({"checkpoint": "/x", "router": {"port": 7}}), "cell.json"))
    assert toml == written
    assert CellConfig.read(_file(tmp_path, toml.model_dump_json(), "again.json")) == toml


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("cell.toml", "a = ", "cell.toml is not TOML: "),
        ("cell.json", "{", "cell.json is not JSON: "),
        ("cell.json", "[1]", "cell.json must hold an object, got list"),
        ("cell.json", '{"checkpoint": "/x", "router": 3}', "router: "),
        ("cell.toml", 'checkpoint = "/x"\nnum_shardz = 4\n', "num_shardz: unknown key; did you mean 'num_shards'?"),
        ("cell.toml", "num_shards = 4\n", "checkpoint: is required"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        CellConfig.read(_file(tmp_path, text, name))
    assert words in str(refused.value)


def test_a_section_that_is_none_is_named_though_flags_add_to_it(tmp_path: Path, tiny_checkpoint: Path) -> None:
    file = _file(tmp_path, "timeouts = 3\n")
    with pytest.raises(ConfigError, match="timeouts: "):
        plan_cell({"checkpoint": tiny_checkpoint, "timeouts": {"drain_s": 9.0}}, file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config: cannot read .*: No such file or directory"):
        CellConfig.read(tmp_path / "none.toml")
