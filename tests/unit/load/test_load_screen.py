import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from moonshard.errors import ConfigError
from moonshard_cluster.load.colours import IDLE, rgb_of
from moonshard_cluster.load.matrix import ExpertLoad
from moonshard_cluster.load.picture import draw
from moonshard_cluster.load.screen import fold, render
from tests.unit.load.load_samples import small_load


def shown(load: ExpertLoad, width: int = 100) -> str:
    console = Console(width=width, height=40, record=True, color_system="truecolor", file=io.StringIO())
    console.print(render(load, width, 40))
    return console.export_text()


def test_the_screen_names_the_hot_expert_and_the_loaded_shard() -> None:
    text = shown(small_load())
    assert "balancedness 0.77 on average, 0.54 in layer 4" in text
    assert "layer 3 ▀▀▀▀▀▀▀▀\n" in text
    assert "    4       2      0    90          7.2" in text
    assert "88.9%" in text
    assert "1.78" in text


def test_without_any_load_the_screen_says_why() -> None:
    assert "metrics.load_window_s" in shown(small_load([[0] * 8] * 2))


def test_a_map_that_is_too_wide_keeps_its_hottest() -> None:
    heat_LE = np.zeros((60, 384))
    heat_LE[17, 200] = 9.0
    folded = fold(heat_LE, 20, 100)
    assert folded.shape == (20, 96)
    assert (folded.max(), folded[5, 50]) == (9.0, 9.0)


def test_hotter_is_brighter() -> None:
    brightness = [sum(rgb_of(heat)) for heat in (0.0, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 100.0)]
    assert brightness == sorted(brightness)
    assert rgb_of(0.0) == IDLE


def test_the_picture_shows_the_hot_expert(tmp_path: Path) -> None:
    draw(small_load(), tmp_path / "load.png")
    with Image.open(tmp_path / "load.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert {rgb_of(7.2), rgb_of(1.0), IDLE} <= colours


def test_nothing_to_draw_and_nowhere_to_write_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to draw"):
        draw(small_load([[0] * 8] * 2), tmp_path / "load.png")
    with pytest.raises(ConfigError, match="cannot write"):
        draw(small_load(), tmp_path / "absent" / "load.png")
