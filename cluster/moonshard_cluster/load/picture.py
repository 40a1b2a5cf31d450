"""Expert load as a PNG: the heat map, and under it a bar for each shard."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from moonshard.errors import ConfigError
from moonshard_cluster.load.colours import rgb_of
from moonshard_cluster.load.matrix import ExpertLoad

LEFT, TOP, GAP, BAR = 70, 50, 50, 18
PAPER, INK = (255, 255, 255), (30, 30, 30)
WIDTH_MIN, HEIGHT_MIN = 960, 240

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw(load: ExpertLoad, path: Path) -> None:
    """Raises ConfigError when there is nothing to draw or the file cannot be written."""
    if not load.total:
        raise ConfigError("plot", "no shard has told of any rows yet, so there is nothing to draw")
    picture = _picture(load)
    try:
        picture.save(path, "PNG")
    except OSError as error:
        raise ConfigError("plot", f"cannot write {path}: {error.strerror or error}") from None


def _picture(load: ExpertLoad) -> Image.Image:
    num_layers, num_experts = load.rows_LE.shape
    cell_x, cell_y = -(-WIDTH_MIN // num_experts), max(6, -(-HEIGHT_MIN // num_layers))
    width, height = num_experts * cell_x, num_layers * cell_y
    bars_at = TOP + height + GAP
    picture = Image.new("RGB", (LEFT + width + 30, bars_at + (BAR + 4) * len(load.ranks) + 40), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    heat = Image.fromarray(_colours(load)).resize((width, height), Image.Resampling.NEAREST)
    picture.paste(heat, (LEFT, TOP))
    _label(load, pen, font, cell_x, cell_y)
    _bars(load, pen, font, bars_at, width)
    return picture


def _colours(load: ExpertLoad) -> "np.typing.NDArray[np.uint8]":
    heat_LE = load.heat_LE()
    return np.array([[rgb_of(heat) for heat in row] for row in heat_LE.tolist()], np.uint8)


def _label(
    load: ExpertLoad,
    pen: ImageDraw.ImageDraw,
    font: Font,
    cell_x: int,
    cell_y: int,
) -> None:
    num_layers, num_experts = load.rows_LE.shape
    title = f"{load.model_name}: rows by the mean of their layer, {load.total:,} rows x experts in {load.span_s:.0f} s"
    pen.text((LEFT, 16), title, INK, font)
    for at in range(0, num_layers, max(1, -(-num_layers // 12))):
        pen.text((LEFT - 8, TOP + at * cell_y), f"layer {load.layers[at]}", INK, font, anchor="ra")
    for expert in range(0, num_experts, max(1, num_experts // 8)):
        pen.text((LEFT + expert * cell_x, TOP + num_layers * cell_y + 6), f"{expert}", INK, font)
    pen.text((LEFT + num_experts * cell_x, TOP + num_layers * cell_y + 6), "expert", INK, font, anchor="ra")


def _bars(
    load: ExpertLoad,
    pen: ImageDraw.ImageDraw,
    font: Font,
    top: int,
    width: int,
) -> None:
    rows_S = load.rows_SL.sum(axis=1)
    mean, most = rows_S.mean(), max(int(rows_S.max()), 1)
    for at, (rank, rows) in enumerate(zip(load.ranks, rows_S.tolist(), strict=True)):
        y, length = top + at * (BAR + 4), round((width - 80) * rows / most)
        pen.text((LEFT - 8, y), f"shard {rank}", INK, font, anchor="ra")
        pen.rectangle((LEFT, y, LEFT + length, y + BAR), fill=rgb_of(rows / mean))
        pen.text((LEFT + length + 6, y), f"{rows / mean:.2f}", INK, font)
    pen.text((LEFT, top + len(rows_S) * (BAR + 4) + 6), "shards' rows by their mean", INK, font)
