"""`moonshard plan`: which machines a checkpoint needs, how fast they would be, and where separation loses."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from moonshard.errors import ConfigError
from moonshard.model.config import ModelConfig
from moonshard.model.inventory import summarise
from moonshard_cluster.commands.inspect import read_model
from moonshard_cluster.on_ray.placement import Resources
from moonshard_cluster.plan import published, roofline
from moonshard_cluster.plan.costs import Costs
from moonshard_cluster.plan.layout import Demand, Layout, on_one_machine, recommended, smallest
from moonshard_cluster.plan.machines import KNOWN, Machine, read_machine
from moonshard_cluster.plan.ray_bundles import RayPlan, ray_plan, read_nodes

BATCHES = (1, 8, 32, 128, 512)
# At which rate a layout is judged: enough sequences to fill its cache, within reason.
NEARLY = 0.005


def plan(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint directory, or a config.json")],
    expert_machine: Annotated[str, typer.Option("--experts", help=f"TOML file, or one of {', '.join(KNOWN)}")] = "h100",
    attention_machine: Annotated[str | None, typer.Option("--attention", help="the same [as --experts]")] = None,
    sequences: Annotated[int, typer.Option("--sequences", help="to be served at once", min=1)] = 64,
    context: Annotated[int, typer.Option("--context", help="tokens of each", min=1)] = 8192,
    here: Annotated[bool, typer.Option("--one-machine", help="the whole cell on one machine of --experts")] = False,
    ray: Annotated[
        list[str] | None,
        typer.Option("--ray", help="show the bundles on such Ray nodes, 8xCPU=64 or 2xCPU=32,GPU=1; several add up"),
    ] = None,
) -> None:
    """Work out layouts, memory, KV capacity and rates from a config and a description of machines."""
    model = read_model(checkpoint)
    experts = read_machine(expert_machine)
    attention = read_machine(attention_machine) if attention_machine else experts
    demand, nodes = Demand(sequences, context), read_nodes(ray or [])
    console = Console(soft_wrap=not Console().is_terminal)
    for form in ("int4", "bf16"):
        costs = Costs.of(model, form)
        for name, layout in _layouts(console, form, costs, experts, attention, demand, here):
            console.print(_memory(f"{form.upper()}, {name}", costs, layout, demand))
            console.print(_rates(costs, layout, demand))
            if nodes:
                _print_bundles(console, layout, checkpoint, nodes)
    if _is_k25(model):
        console.print(_published(model))


def _layouts(
    console: Console, form: str, costs: Costs, experts: Machine, attention: Machine, demand: Demand, here: bool
) -> Iterator[tuple[str, Layout]]:
    """Those that fit; what does not is said."""
    try:
        if here:
            yield f"one {experts.name}", on_one_machine(costs, experts)
            return
        yield "smallest", smallest(costs, experts, attention, demand)
        yield "recommended", recommended(costs, experts, attention, demand, lambda each: _rate(costs, each, demand))
    except ConfigError as error:
        console.print(f"{form.upper()}: does not fit: {error}\n", style="yellow", highlight=False)


def _rate(costs: Costs, layout: Layout, demand: Demand) -> float:
    return demand.num_sequences / roofline.decode(costs, layout, demand.num_sequences, demand.context).step


def _memory(title: str, costs: Costs, layout: Layout, demand: Demand) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    rows = {
        "machines": f"{layout.num_machines}",
        "expert shards": f"{layout.num_shards} x {layout.num_copies} on {layout.expert_machine.name}: "
        f"{layout.shard_bytes(costs) / 1e9:.1f} GB each, room for {layout.redundant_slots(costs)} more experts",
        "attention workers": f"{layout.num_attention} on {layout.attention_machine.name}: "
        f"{costs.attention_bytes / 1e9:.1f} GB each, {layout.kv_bytes_free(costs) / 1e9:.1f} GB for KV cache",
        "sequences at once": ", ".join(
            f"{layout.sequences(costs, length)} of {length} tokens" for length in _lengths(demand.context)
        ),
        "prefill": f"{_prefill_rate(costs, layout):.0f} tokens a second (prompt 4096, chunks of 1024)",
    }
    for key, value in rows.items():
        table.add_row(key, value)
    return table


def _lengths(context: int) -> list[int]:
    return sorted({4096, 32768, 262144, context})


def _prefill_rate(costs: Costs, layout: Layout) -> float:
    return layout.num_attention * 1024 / roofline.prefill(costs, layout, 1024, 4096).step


def _rates(costs: Costs, layout: Layout, demand: Demand) -> Table:
    """Decode at several batches, each term of a step in milliseconds."""
    table = Table(box=None, pad_edge=False, caption=_caption(costs, layout), caption_justify="left")
    columns = (
        "sequences",
        "tokens/s",
        "step ms",
        "weights",
        "KV",
        "attention ops",
        "experts read",
        "ops",
        "uneven",
        "network",
        "latency",
        "engine",
    )
    for column in (*columns, "wide EP tokens/s", "separation"):
        table.add_column(column, justify="right")
    for batch in BATCHES:
        found = roofline.decode(costs, layout, batch, demand.context)
        attention = found.attention_read, found.kv_read, found.attention_compute
        experts = found.expert_read, found.expert_compute, found.uneven
        terms = found.step, *attention, *experts, found.network, found.latency, found.engine
        shown = [f"{1e3 * seconds:.2f}" for seconds in terms]
        table.add_row(str(batch), f"{batch / found.step:.1f}", *shown, *_against_wide_ep(costs, layout, batch, demand))
    return table


def _against_wide_ep(costs: Costs, layout: Layout, batch: int, demand: Demand) -> tuple[str, str]:
    """The same machines as plain wide expert parallelism, and what separation costs or gains."""
    machine, count = layout.expert_machine, layout.num_machines
    if layout.shared or layout.attention_machine != machine:
        return "", ""
    if not roofline.fits_wide_ep(costs, machine, count):
        return "does not fit", ""
    wide = roofline.wide_ep_decode(costs, machine, count, batch, demand.context).step
    change = wide / roofline.decode(costs, layout, batch, demand.context).step - 1
    return f"{batch / wide:.1f}", "as fast" if abs(change) < NEARLY else f"{change:+.0%}"


def _caption(costs: Costs, layout: Layout) -> str:
    rows = costs.shards_per_row(layout.num_shards)
    return (
        f"a row goes to {rows:.2f} of {layout.num_shards} shards, "
        f"{costs.network_bytes(layout.num_shards) / 1e6:.1f} MB a token both ways. A step is\n"
        "max(weights + KV, ops) + max(experts read, ops) + uneven + network + latency + engine, or the time that\n"
        "the shards are busy for all attention workers, if longer.\n"
    )


def _print_bundles(console: Console, layout: Layout, checkpoint: Path, nodes: list[Resources]) -> None:
    try:
        console.print(_bundles(ray_plan(layout, checkpoint, nodes)))
    except ConfigError as error:
        console.print(f"On Ray: {error}\n", style="yellow", highlight=False)


def _bundles(found: RayPlan) -> Table:
    """A row for each run of workers that ask for the same."""
    caption = f"moonshard up CHECKPOINT --ray HOST:PORT {found.flags}\n"
    table = Table(box=None, pad_edge=False, caption=caption, caption_justify="left", title_justify="left")
    table.title = (
        f"On Ray: {len(found.workers)} bundles, spread over {found.num_nodes} nodes, up to {found.per_node} each"
    )
    for column in ("workers", "ranks", "bundle of each"):
        table.add_column(column)
    for (role, bundle), same in groupby(found.workers, lambda w: (w.role, tuple(w.bundle.items()))):
        ranks = [worker.rank for worker in same]
        resources = ", ".join(f"{name} {amount:g}" for name, amount in bundle)
        table.add_row(role, f"{ranks[0]}..{ranks[-1]}" if len(ranks) > 1 else str(ranks[0]), resources)
    return table


def _is_k25(model: ModelConfig) -> bool:
    return (model.n_routed_experts, model.hidden_size, model.num_hidden_layers) == (384, 7168, 61)


def _published(model: ModelConfig) -> Table:
    vision = summarise(model).bytes_by_role.get("vision", 0)
    table = Table(title="The published hardware table", title_justify="left", box=None, pad_edge=False)
    for column in ("published", "GB", "here GB", ""):
        table.add_column(column)
    for row in published.rows(Costs.of(model, "int4"), Costs.of(model, "bf16"), vision):
        table.add_row(row.claim, f"{row.published_gb:.0f}", f"{row.computed_gb:.0f}", row.verdict)
    return table
