"""`moonshard demo-model`: write a checkpoint of seeded random weights in the published format."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from moonshard_cluster.demo.checkpoint import write_demo
from moonshard_cluster.demo.spec import DemoSpec


def demo_model(
    directory: Annotated[Path, typer.Argument(help="where to write; must not exist")],
    size: Annotated[Literal["tiny", "small"], typer.Option("--size", help="where the dimensions start")] = "small",
    seed: Annotated[int, typer.Option("--seed")] = 0,
    chaotic: Annotated[bool, typer.Option("--chaotic", help="full-strength layers: for speed, not parity")] = False,
    hidden_size: Annotated[int | None, typer.Option("--hidden-size", help="K2.5: 7168")] = None,
    num_hidden_layers: Annotated[int | None, typer.Option("--layers", help="the first is dense; K2.5: 61")] = None,
    num_attention_heads: Annotated[int | None, typer.Option("--heads", help="K2.5: 64")] = None,
    q_lora_rank: Annotated[int | None, typer.Option("--q-lora-rank", help="K2.5: 1536")] = None,
    kv_lora_rank: Annotated[int | None, typer.Option("--kv-lora-rank", help="K2.5: 512")] = None,
    qk_nope_head_dim: Annotated[int | None, typer.Option("--qk-nope-head-dim", help="K2.5: 128")] = None,
    qk_rope_head_dim: Annotated[int | None, typer.Option("--qk-rope-head-dim", help="K2.5: 64")] = None,
    v_head_dim: Annotated[int | None, typer.Option("--v-head-dim", help="K2.5: 128")] = None,
    n_routed_experts: Annotated[int | None, typer.Option("--experts", help="K2.5: 384")] = None,
    num_experts_per_tok: Annotated[int | None, typer.Option("--top-k", help="K2.5: 8")] = None,
    moe_intermediate_size: Annotated[int | None, typer.Option("--moe-width", help="K2.5: 2048")] = None,
    intermediate_size: Annotated[int | None, typer.Option("--dense-width", help="K2.5: 18432")] = None,
    vocab_size: Annotated[int | None, typer.Option("--vocab-size", help="K2.5: 163840")] = None,
) -> None:
    """Write a demo checkpoint: random weights, but K2.5's architecture, names and formats."""
    given = {name: value for name, value in locals().items() if name in _DIMENSIONS and value is not None}
    spec = (DemoSpec.tiny if size == "tiny" else DemoSpec.small)(seed=seed, **given)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(str(directory), total=None)
        write_demo(
            directory,
            spec.chaotic() if chaotic else spec,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(f"wrote {directory}", highlight=False)


_DIMENSIONS = {field.name for field in dataclasses.fields(DemoSpec)} - {"name", "seed", "calm"}
