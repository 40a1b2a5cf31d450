"""`moonshard placement`: where experts are, and where they should be."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from moonshard.errors import ConfigError
from moonshard.placed import check_layer
from moonshard.placement import Layer, Rules
from moonshard.placement_cost import Change, Costs, change, propose
from moonshard.placement_pins import pinned
from moonshard.rpc.placements import layer_to_proto
from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.client import DEFAULT_ROUTER, Client
from moonshard_cluster.load.matrix import ExpertLoad, from_response, read_recording
from moonshard_cluster.load.placements import CellPlacement, from_cell, from_recording, read_layers, write_layers

app = typer.Typer(help="Where experts are, and where they should be.", no_args_is_help=True)

RouterAddress = Annotated[str, typer.Option("--router", help="HOST:PORT of the router")]
Recording = Annotated[Path | None, typer.Option("--load", help="a file of `moonshard experts --record`, not the cell")]
Window = Annotated[float, typer.Option("--window", help="seconds to look back; 0: since the start", min=0)]
Redundant = Annotated[
    int | None, typer.Option(help="slots beyond one copy of every expert, all shards together [the cell's]", min=0)
]
MinCopies = Annotated[int, typer.Option(help="copies of every expert, for availability", min=1)]
Balanced = Annotated[Literal["rows", "decode"], typer.Option("--mode", help="even out rows, or active experts")]
BatchRows = Annotated[int, typer.Option(help="rows of a batch", min=1)]
RowUs = Annotated[float, typer.Option(help="a shard's microseconds for a row of an expert", min=0)]
ExpertUs = Annotated[float, typer.Option(help="the same for reading an active expert", min=0)]
MoveS = Annotated[
    float | None, typer.Option(help="seconds that a shard needs to load a copy [measured, or 0.1]", min=0)
]
HorizonS = Annotated[float, typer.Option(help="seconds for which the load is taken to stay", min=1)]
MOVE_S = 0.1
APPLY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line says of a plan."""

    redundant: int | None
    min_copies: int
    mode: Literal["rows", "decode"]
    batch_rows: int
    row_us: float
    expert_us: float
    move_s: float | None
    horizon_s: float

    def rules(self, placed: CellPlacement) -> Rules:
        slots = placed.num_slots
        if self.redundant is not None:
            slots = placed.num_own + -(-self.redundant // placed.num_shards)
        return Rules(placed.num_shards, slots, self.min_copies, self.mode, self.batch_rows)

    def costs(self, placed: CellPlacement) -> Costs:
        move_s = placed.load_s or MOVE_S if self.move_s is None else self.move_s
        return Costs(self.row_us / 1e6, self.expert_us / 1e6, move_s, self.horizon_s)


@app.command("show")
def show(
    router: RouterAddress = DEFAULT_ROUTER,
    load: Recording = None,
    window_s: Window = 0.0,
) -> None:
    """Show which shard holds which experts, and how even their load is."""
    found, placed = _look(router, load, window_s)
    Console().print(render_shown(found, placed))


@app.command("plan")
def plan(
    router: RouterAddress = DEFAULT_ROUTER,
    load: Recording = None,
    window_s: Window = 0.0,
    redundant: Redundant = None,
    min_copies: MinCopies = 1,
    mode: Balanced = "rows",
    batch_rows: BatchRows = 64,
    row_us: RowUs = 10.0,
    expert_us: ExpertUs = 100.0,
    move_s: MoveS = None,
    horizon_s: HorizonS = 600.0,
    save: Annotated[Path | None, typer.Option(help="write the layers that pay here, for `placement apply`")] = None,
) -> None:
    """Compute a better placement for the load, and whether it would pay for its moves. Nothing is changed."""
    found, placed = _look(router, load, window_s)
    wishes = Wishes(redundant, min_copies, mode, batch_rows, row_us, expert_us, move_s, horizon_s)
    changes = propose_all(found, placed, wishes)
    Console().print(render_plan(found, changes))
    if save:
        write_layers(save, paying(found, changes), placed.generation)


@app.command("apply")
def apply(
    file: Annotated[Path | None, typer.Argument(help="a placement of `placement plan --save`")] = None,
    auto: Annotated[bool, typer.Option("--auto", help="plan for the live load instead")] = False,
    router: RouterAddress = DEFAULT_ROUTER,
    load: Recording = None,
    window_s: Window = 0.0,
    min_copies: MinCopies = 1,
    mode: Balanced = "rows",
    batch_rows: BatchRows = 64,
    row_us: RowUs = 10.0,
    expert_us: ExpertUs = 100.0,
    move_s: MoveS = None,
    horizon_s: HorizonS = 600.0,
    force: Annotated[bool, typer.Option("--force", help="also layers whose change gains less than it costs")] = False,
    watch_s: Annotated[float, typer.Option("--watch", help="then measure the load for so many seconds", min=0)] = 0.0,
) -> None:
    """Move experts while requests run: every layer whose change gains more than it costs."""
    if (file is None) != auto:
        raise ConfigError("apply", "takes a file, or --auto")
    found, placed = _look(router, load, window_s)
    with Client(router) as client:
        placed = from_cell(client.placement())
        wishes = Wishes(None, min_copies, mode, batch_rows, row_us, expert_us, move_s, horizon_s)
        generation = placed.generation
        if file:
            layers, generation = read_layers(file)
            found = found.of_layers(tuple(sorted(layers)))
            changes = weigh_all(found, placed, wishes, layers)
        else:
            changes = propose_all(found, placed, wishes)
        console = Console()
        console.print(render_plan(found, changes))
        wanted = paying(found, changes, force)
        if wanted:
            carry_out(console, client, wanted, generation)
        if wanted and watch_s:
            time.sleep(watch_s)
            before, after = found.balancedness_L(), from_response(client.load(watch_s)).of_layers(found.layers)
            console.print(
                f"balancedness measured: {before.mean():.3f} before, {after.balancedness_L().mean():.3f} after"
            )


@app.command("pin")
def pin(
    layer: Annotated[int, typer.Argument(help="number of the MoE layer")],
    expert: Annotated[int, typer.Argument(help="logical number of the expert")],
    shards: Annotated[
        list[int] | None, typer.Argument(help="shards that shall hold it; none: it may be anywhere")
    ] = None,
    router: RouterAddress = DEFAULT_ROUTER,
) -> None:
    """Keep copies of an expert at certain shards, whatever is planned later, and move them there now."""
    console = Console()
    with Client(router) as client:
        placed = from_cell(client.pin(pb.Pin(layer=layer, expert=expert, shards=shards or [])))
        if not shards:
            console.print(f"expert {expert} of layer {layer} may be anywhere")
            return
        wanted = pinned(placed.layers[layer], placed.pins[layer], placed.num_slots)
        carry_out(console, client, {layer: wanted}, placed.generation)
        console.print(f"expert {expert} of layer {layer} stays at shard {', '.join(map(str, sorted(set(shards))))}")


def carry_out(console: Console, client: Client, layers: Mapping[int, Layer], generation: int) -> None:
    """Have the router do it, and tell how far it is."""
    last = pb.PlacementProgress(generation=generation)
    with console.status("moving experts") as status:
        for last in client.apply_placement(apply_request(layers, generation), APPLY_S):
            done = f"{last.num_layers_done} of {last.num_layers} layers"
            status.update(f"moving experts: {done}, {last.num_loaded} copies loaded")
    console.print(
        f"placement {last.generation}: {last.num_layers_done} layers changed, {last.num_loaded} copies loaded "
        f"in {last.seconds:.1f} s"
    )


def apply_request(layers: Mapping[int, Layer], generation: int) -> pb.ApplyPlacementRequest:
    return pb.ApplyPlacementRequest(generation=generation, layers=[layer_to_proto(*it) for it in layers.items()])


def propose_all(found: ExpertLoad, placed: CellPlacement, wishes: Wishes) -> list[Change]:
    """One for each layer of the load."""
    rules, costs = wishes.rules(placed), wishes.costs(placed)
    rules.check(found.rows_LE.shape[1])
    return [
        propose(placed.layers[layer], rows, found.span_s, rules, costs, placed.pins.get(layer))
        for layer, rows in zip(found.layers, found.rows_LE.tolist(), strict=True)
    ]


def weigh_all(found: ExpertLoad, placed: CellPlacement, wishes: Wishes, layers: Mapping[int, Layer]) -> list[Change]:
    """What given layers gain and cost."""
    rules, costs = wishes.rules(placed), wishes.costs(placed)
    return [
        change(
            placed.layers[layer],
            check_layer(layer, layers[layer], len(rows), placed.num_shards),
            rows,
            found.span_s,
            rules,
            costs,
        )
        for layer, rows in zip(found.layers, found.rows_LE.tolist(), strict=True)
    ]


def paying(found: ExpertLoad, changes: list[Change], force: bool = False) -> dict[int, Layer]:
    return {
        layer: it.wanted for layer, it in zip(found.layers, changes, strict=True) if it.pays or (force and it.num_moves)
    }


def _look(router: str, path: Path | None, window_s: float) -> tuple[ExpertLoad, CellPlacement]:
    if path:
        found = read_recording(path)
        return found, from_recording(found)
    with Client(router) as client:
        return from_response(client.load(window_s)), from_cell(client.placement())


def ranges(experts: tuple[int, ...]) -> str:
    """0..3, 7: neighbours as ranges."""
    parts: list[list[int]] = []
    for expert in sorted(experts):
        if parts and parts[-1][-1] == expert - 1:
            parts[-1][1:] = [expert]
        else:
            parts.append([expert])
    return ", ".join("..".join(map(str, part)) for part in parts)


def render_shown(load: ExpertLoad, placed: CellPlacement) -> RenderableType:
    """A line for each shard, then one for each layer that is not in blocks."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("shard", "experts", "rows", "by the mean"):
        table.add_column(title, justify="left" if title in ("shard", "experts") else "right")
    rows_S = load.rows_SL.sum(axis=1)
    for rank, experts, rows in zip(load.ranks, load.holds, rows_S.tolist(), strict=True):
        table.add_row(str(rank), ranges(experts), f"{rows:,}", f"{rows / max(rows_S.mean(), 1e-12):.2f}")
    balance_L = load.balancedness_L()
    line = f"balancedness {balance_L.mean():.3f} on average over {len(load.layers)} layers, " if load.layers else ""
    worst = f"{balance_L.min():.3f} in layer {load.layers[int(balance_L.argmin())]}" if load.layers else "no load yet"
    return Group(table, Text(), Text(line + worst), *_moved_lines(placed))


def _moved_lines(placed: CellPlacement) -> Iterator[Text]:
    if not placed.is_live:
        return
    yield Text(f"placement {placed.generation}, {placed.num_slots} slots a shard in each layer")
    for number, layer in placed.layers.items():
        num_extra = sum(map(len, layer)) - len({expert for held in layer for expert in held})
        size = placed.num_own
        num_moved = sum(shard != expert // size for shard, held in enumerate(layer) for expert in held)
        if num_moved:
            yield Text(f"layer {number}: {num_moved} away from their blocks, {num_extra} copies beyond the first")
    for number, pins in placed.pins.items():
        for expert, shards in pins.items():
            yield Text(f"layer {number}: expert {expert} is pinned to shard {', '.join(map(str, shards))}")


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
