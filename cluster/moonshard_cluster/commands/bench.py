"""`moonshard bench`: how fast a cell serves, and how near its machine's limits it comes."""

import asyncio
import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from moonshard.errors import ConfigError
from moonshard_cluster.access import Access, given_access
from moonshard_cluster.bench.describe import DEEP, FEW, MANY, SHALLOW, Turns, describe, step_seconds, to_toml
from moonshard_cluster.bench.serving import Speed, measure
from moonshard_cluster.client import Client
from moonshard_cluster.commands.up import fresh_log_dir
from moonshard_cluster.demo.cache import ensure_demo
from moonshard_cluster.demo.spec import DemoSpec
from moonshard_cluster.local.plan import plan_cell
from moonshard_cluster.local.progress import LoadBars, wait_ready
from moonshard_cluster.local.supervisor import LocalCluster
from moonshard_cluster.plan.machines import Machine

EXPERT_ROWS = (1, 4, 32, 128)
# Unix sockets between processes of one host, rows of 7168 (DECISIONS, links in native calls).
SOCKETS_GB_S = 8.0
WIDTH, HIDDEN = 7168, 2048  # K2.5's


def bench(
    checkpoint: Annotated[Path | None, typer.Argument(help="checkpoint directory; without it, random weights")] = None,
    router: Annotated[str | None, typer.Option("--router", help="measure this running cell instead")] = None,
    batches: Annotated[str, typer.Option("--batches", help="streams at once")] = "1,8,32",
    prefill: Annotated[int, typer.Option("--prefill", help="prompt tokens", min=1)] = 512,
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="per stream", min=2)] = 64,
    rounds: Annotated[int, typer.Option("--rounds", help="medians are over these", min=1)] = 3,
    dtype: Annotated[str | None, typer.Option("--dtype", help="as in up")] = None,
    threads: Annotated[int, typer.Option("--threads", help="for machine and kernels", min=1)] = 2,
    machine: Annotated[bool, typer.Option("--machine/--no-machine", help="limits and kernels too")] = True,
    describe_file: Annotated[
        Path | None, typer.Option("--describe", help="write this machine, as measured, for `moonshard plan --experts`")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all figures there as well")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", help="seconds for the whole serving part", min=1)] = 1800.0,
) -> None:
    """Measure prefill, decode at several batch sizes, kernels and the machine's limits."""
    console = Console(stderr=True)
    sizes = _sizes(batches)
    figures: dict[str, Any] = {}
    if machine or describe_file:
        figures |= machine_figures(threads)
    if describe_file:
        write_description(console, figures, describe_file)
    with ExitStack() as stack:
        access = given_access()
        if router is None:
            path = checkpoint or random_checkpoint(console)
            router, access = stack.enter_context(ready_cell(console, path, dtype, max(64, *sizes)))
        speeds = asyncio.run(measure(router, prefill, sizes, new_tokens, rounds, timeout_s, access))
    figures["serving"] = [dataclasses.asdict(speed) for speed in speeds]
    _show(speeds, figures)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


@contextmanager
def ready_cell(
    console: Console, checkpoint: Path, dtype: str | None, max_num_seqs: int
) -> Iterator[tuple[str, Access]]:
    """The router's address and how to call it, of a cell that is ready."""
    attention = {"max_num_seqs": max_num_seqs}
    values = {"checkpoint": checkpoint, "dtype": dtype, "router": {"port": 0}, "attention": attention}
    with LocalCluster(plan_cell(values), fresh_log_dir()) as cluster:
        cluster.start()
        access = Access.of_config(cluster.config.router)
        with Client(cluster.router_address, access) as client, LoadBars(console) as bars:
            wait_ready(cluster, client, bars)
        yield cluster.router_address, access


def write_description(console: Console, figures: Mapping[str, Any], path: Path) -> None:
    """Measure what steps and layers cost, and write it with `figures`' limits. Raises ConfigError without them."""
    if "machine" not in figures:
        raise ConfigError("--describe", "needs the native kernels: run python -m moonshard.kernels")
    path.write_text(to_toml(described(figures, measure_turns(console))))


def described(figures: Mapping[str, Any], turns: Turns) -> Machine:
    """From `machine_figures` and `measure_turns`."""
    from moonshard_cluster.bench.machine import KernelSpeed, Limits

    limits = Limits(**{key: figures["machine"][key] for key in ("read", "int8", "bf16")})
    kernels = [KernelSpeed(**speed) for speed in figures["int4 expert"]]
    return describe(limits, kernels, turns, SOCKETS_GB_S)


def measure_turns(console: Console) -> Turns:
    """What steps and layers cost beside their weights, on two cells of its own."""
    found = {depth: _decode_steps(console, depth) for depth in (SHALLOW, DEEP)}
    return Turns.of(found[SHALLOW], found[DEEP])


def _decode_steps(console: Console, num_layers: int) -> dict[int, float]:
    """Seconds of a decode step on a demo of next to no weights, by number of sequences."""
    spec = DemoSpec.tiny(num_hidden_layers=num_layers, name=f"turns-{num_layers}")
    path = ensure_demo(spec, lambda _done, _total: None)
    with ready_cell(console, path, None, MANY) as (router, access):
        speeds = asyncio.run(measure(router, 32, [FEW, MANY], 96, 3, 300.0, access))
    rates = {found.name: found.median for found in speeds}
    return step_seconds({batch: rates[f"decode b{batch}"] for batch in (FEW, MANY)})


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise ConfigError("--batches", f"must be positive numbers separated by commas, got {text!r}")
    return sizes


def machine_figures(threads: int) -> dict[str, Any]:
    from moonshard import kernels
    from moonshard_cluster.bench.machine import expert_kernels, limits

    if not kernels.available():
        return {}
    with kernels.Pool(threads) as pool:
        found = limits(pool)
        speeds = list(expert_kernels(pool, found, WIDTH, HIDDEN, EXPERT_ROWS))
        return {
            "machine": {"isa": pool.isa, "threads": threads, **dataclasses.asdict(found)},
            "int4 expert": [dataclasses.asdict(speed) for speed in speeds],
        }


def _show(speeds: list[Speed], figures: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("what", "median", "best", ""):
        table.add_column(title, justify="left" if title in ("what", "") else "right")
    if machine := figures.get("machine"):
        table.add_row("memory read", f"{machine['read'] / 1e9:.1f}", "", f"GB/s, {machine['threads']} threads")
        table.add_row("INT8 dot peak", f"{machine['int8'] / 1e9:.0f}", "", f"GOP/s, {machine['isa']}")
        table.add_row("BF16 dot peak", f"{machine['bf16'] / 1e9:.0f}", "", "GFLOP/s")
    for expert in figures.get("int4 expert", []):
        shares = f"{100 * expert['share_of_read']:.0f} % of memory, {100 * expert['share_of_int8']:.0f} % of the peak"
        speed = f"{expert['read'] / 1e9:.1f} GB/s, {expert['operations'] / 1e9:.0f} GFLOP/s"
        table.add_row(f"INT4 expert, {expert['rows']} rows", speed, "", shares)
    for found in speeds:
        table.add_row(found.name, f"{found.median:.1f}", f"{found.best:.1f}", f"tokens/s, {found.rounds} rounds")
    Console(soft_wrap=not Console().is_terminal).print(table)


def random_checkpoint(console: Console) -> Path:
    """A demo checkpoint of random weights, written on the first use: speed asks for size, not for sense."""
    with Progress(TextColumn("writing a random checkpoint"), BarColumn(), console=console, transient=True) as bar:
        task = bar.add_task("demo", total=None)
        return ensure_demo(DemoSpec.small(), lambda done, total: bar.update(task, completed=done, total=total))
