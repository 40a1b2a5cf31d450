"""Expert load in a terminal: a heat map, the hottest experts, a bar for each shard."""

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from moonshard_cluster.load.colours import colour_of
from moonshard_cluster.load.matrix import ExpertLoad, holders

MARGIN = 9
BAR_WIDTH = 32
NUM_HOTTEST = 10


def render(load: ExpertLoad, width: int, height: int) -> RenderableType:
    """At most `width` columns and about `height` lines."""
    if not load.total:
        return Text("no shard has told of any rows yet: counts leave a shard in windows (metrics.load_window_s)")
    bottom = Table.grid(padding=(0, 4))
    bottom.add_row(_shards(load), _hottest(load))
    lines = max(4, height - 8 - max(NUM_HOTTEST, len(load.ranks)))
    return Group(_title(load), Text(), _heat_map(load, width - MARGIN, lines), Text(), bottom)


def _title(load: ExpertLoad) -> Text:
    balance_L = load.balancedness_L()
    worst = int(balance_L.argmin())
    return Text(
        f"{load.model_name}: {load.total:,} rows x experts in {load.span_s:.0f} s; balancedness "
        f"{balance_L.mean():.2f} on average, {balance_L[worst]:.2f} in layer {load.layers[worst]}",
        style="bold",
    )


def fold(heat_LE: NDArray[np.float64], num_rows: int, num_columns: int) -> NDArray[np.float64]:
    """At most so many rows and columns: neighbours are merged, the hottest of them shows."""
    for axis, limit in ((0, num_rows), (1, num_columns)):
        each = -(-heat_LE.shape[axis] // max(1, limit))
        starts = np.arange(0, heat_LE.shape[axis], each)
        heat_LE = np.maximum.reduceat(heat_LE, starts, axis=axis)
    return heat_LE


def _heat_map(load: ExpertLoad, width: int, lines: int) -> RenderableType:
    """Two layers a line, the upper in the foreground's colour."""
    heat_LE = load.heat_LE()
    shown = fold(heat_LE, 2 * lines, width)
    each_L = -(-heat_LE.shape[0] // shown.shape[0])
    each_E = -(-heat_LE.shape[1] // shown.shape[1])
    text = Text(no_wrap=True)
    for at in range(0, len(shown), 2):
        text.append(f"{_name(load, at, each_L):>{MARGIN - 2}} ", style="dim")
        below = shown[at + 1] if at + 1 < len(shown) else np.zeros(shown.shape[1])
        for upper, lower in zip(shown[at].tolist(), below.tolist(), strict=True):
            text.append("▀", Style(color=colour_of(upper), bgcolor=colour_of(lower)))
        text.append("\n")
    return Group(text, _legend(heat_LE.shape[1], each_E))


def _legend(num_experts: int, each_E: int) -> Text:
    text = Text(f"experts 0..{num_experts - 1}, {each_E} a column; load by the layer's mean: ")
    for heat, name in ((0.0, "none"), (0.25, "¼"), (1.0, "1"), (2.0, "2"), (4.0, "4"), (8.0, "8 and more")):
        text.append("██", Style(color=colour_of(heat)))
        text.append(f" {name}  ", style="dim")
    return text


def _name(load: ExpertLoad, at: int, each: int) -> str:
    return f"layer {load.layers[at * each]}" if at == 0 else str(load.layers[at * each])


def _shards(load: ExpertLoad) -> RenderableType:
    rows_S = load.rows_SL.sum(axis=1)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("shard")
    table.add_column("share", justify="right")
    table.add_column("by the mean")
    for rank, rows in zip(load.ranks, rows_S.tolist(), strict=True):
        heat = rows / max(rows_S.mean(), 1e-12)
        bar = Text("█" * round(heat * BAR_WIDTH / 2), Style(color=colour_of(heat)))
        table.add_row(str(rank), f"{rows / load.total:.1%}", bar.append(f" {heat:.2f}", style="default"))
    return table


def _hottest(load: ExpertLoad) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("layer", "expert", "shard", "rows", "by the mean"):
        table.add_column(title, justify="right")
    heat_LE, index_of = load.heat_LE(), {layer: at for at, layer in enumerate(load.layers)}
    for layer, expert, rows in load.hottest(NUM_HOTTEST):
        shards = ", ".join(map(str, holders(load, expert)))
        table.add_row(str(layer), str(expert), shards, f"{rows:,}", f"{heat_LE[index_of[layer], expert]:.1f}")
    return table
