"""`moonshard placement`: where experts are, and where they should be."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from moonshard.placement import Layer, Rules
from moonshard.placement_cost import Change, Costs, propose
from moonshard_cluster.client import DEFAULT_ROUTER, Client
from moonshard_cluster.load.matrix import ExpertLoad, from_response, read_recording

app = typer.Typer(help="Where experts are, and where they should be.", no_args_is_help=True)

RouterAddress = Annotated[str, typer.Option("--router", help="HOST:PORT of the router")]
Recording = Annotated[Path | None, typer.Option("--load", help="a file of `moonshard experts --record`, not the cell")]
Window = Annotated[float, typer.Option("--window", help="seconds to look back; 0: since the start", min=0)]


@app.command("show")
def show(
    router: RouterAddress = DEFAULT_ROUTER,
    load: Recording = None,
    window_s: Window = 0.0,
) -> None:
    """Show which shard holds which experts, and how even their load is."""
    Console().print(render_shown(_load(router, load, window_s)))


@app.command("plan")
def plan(
    router: RouterAddress = DEFAULT_ROUTER,
    load: Recording = None,
    window_s: Window = 0.0,
    redundant: Annotated[
        int, typer.Option(help="slots beyond one copy of every expert, all shards together", min=0)
    ] = 0,
    min_copies: Annotated[int, typer.Option(help="copies of every expert, for availability", min=1)] = 1,
    mode: Annotated[Literal["rows", "decode"], typer.Option(help="even out rows, or active experts")] = "rows",
    batch_rows: Annotated[int, typer.Option(help="rows of a batch", min=1)] = 64,
    row_us: Annotated[float, typer.Option(help="a shard's microseconds for a row of an expert", min=0)] = 10.0,
    expert_us: Annotated[float, typer.Option(help="the same for reading an active expert", min=0)] = 100.0,
    move_s: Annotated[float, typer.Option(help="seconds that a shard needs to load a copy", min=0)] = 0.1,
    horizon_s: Annotated[float, typer.Option(help="seconds for which the load is taken to stay", min=1)] = 600.0,
) -> None:
    """Compute a better placement for the load, and whether it would pay for its moves. Nothing is changed."""
    found = _load(router, load, window_s)
    num_experts, num_shards = found.rows_LE.shape[1], len(found.ranks)
    slots = -(-(num_experts + redundant) // max(1, num_shards))
    rules = Rules(num_shards, slots, min_copies, mode, batch_rows)
    rules.check(num_experts)
    costs = Costs(row_us / 1e6, expert_us / 1e6, move_s, horizon_s)
    changes = [propose(_current(found), rows, found.span_s, rules, costs) for rows in found.rows_LE.tolist()]
    Console().print(render_plan(found, changes))


def _load(router: str, path: Path | None, window_s: float) -> ExpertLoad:
    if path:
        return read_recording(path)
    with Client(router) as client:
        return from_response(client.load(window_s))


def _current(load: ExpertLoad) -> Layer:
    return tuple(tuple(sorted(experts)) for experts in load.holds)


def ranges(experts: tuple[int, ...]) -> str:
    """0..3, 7: neighbours as ranges."""
    parts: list[list[int]] = []
    for expert in sorted(experts):
        if parts and parts[-1][-1] == expert - 1:
            parts[-1][1:] = [expert]
        else:
            parts.append([expert])
    return ", ".join("..".join(map(str, part)) for part in parts)


def render_shown(load: ExpertLoad) -> RenderableType:
    """A line for each shard."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("shard", "experts", "rows", "by the mean"):
        table.add_column(title, justify="left" if title in ("shard", "experts") else "right")
    rows_S = load.rows_SL.sum(axis=1)
    for rank, experts, rows in zip(load.ranks, load.holds, rows_S.tolist(), strict=True):
        table.add_row(str(rank), ranges(experts), f"{rows:,}", f"{rows / max(rows_S.mean(), 1e-12):.2f}")
    balance_L = load.balancedness_L()
    line = f"balancedness {balance_L.mean():.3f} on average over {len(load.layers)} layers, " if load.layers else ""
    worst = f"{balance_L.min():.3f} in layer {load.layers[int(balance_L.argmin())]}" if load.layers else "no load yet"
    return Group(table, Text(), Text(line + worst))


def render_plan(load: ExpertLoad, changes: list[Change]) -> RenderableType:
    """A line for each layer, and the sums."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("layer", "balancedness", "planned", "moves", "gain", "cost", "pays"):
        table.add_column(title, justify="right")
    for layer, it in zip(load.layers, changes, strict=True):
        verdict = "yes" if it.pays else "no"
        seconds = f"{it.gain_s:.2f} s", f"{it.cost_s:.2f} s"
        table.add_row(
            str(layer), f"{it.balance_before:.3f}", f"{it.balance_after:.3f}", str(it.num_moves), *seconds, verdict
        )
    return Group(table, Text(), Text(summary(changes)))


def summary(changes: list[Change]) -> str:
    paying = [it for it in changes if it.pays]
    if not paying:
        return "no layer's change would gain more than it costs"
    gain_s, cost_s = sum(it.gain_s for it in paying), sum(it.cost_s for it in paying)
    before_s, after_s = sum(it.before_s for it in changes), sum(it.before_s for it in changes if not it.pays)
    after_s += sum(it.after_s for it in paying)
    return (
        f"{len(paying)} of {len(changes)} layers pay: {sum(it.num_moves for it in paying)} copies to load, "
        f"{gain_s:.1f} s gained in {paying[0].horizon_s:.0f} s for {cost_s:.1f} s; the busiest shards' time falls by "
        f"{1 - after_s / max(before_s, 1e-12):.0%}"
    )
