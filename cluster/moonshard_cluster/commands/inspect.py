"""`moonshard inspect`: what a checkpoint holds and what each worker will load, from its config.json alone."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from moonshard.errors import CheckpointError
from moonshard.model.config import ModelConfig
from moonshard.model.inventory import Summary, expected_tensors, summarise


def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint directory, or a config.json")],
    shards: Annotated[int, typer.Option("--shards", help="expert shards")] = 8,
    tensors: Annotated[bool, typer.Option("--tensors", help="list every expected tensor instead")] = False,
) -> None:
    """Show parameters, bytes per role, and what each shard will hold."""
    model = read_model(checkpoint)
    if tensors:
        for spec in expected_tensors(model):
            typer.echo(f"{spec.name}\t{spec.dtype}\t{list(spec.shape)}")
        return
    Console(soft_wrap=not Console().is_terminal).print(_render(model, summarise(model, shards)))


def read_model(checkpoint: Path) -> ModelConfig:
    """From a checkpoint directory or a bare config.json. Raises CheckpointError or ConfigError."""
    if checkpoint.is_dir():
        return ModelConfig.from_dir(checkpoint)
    try:
        return ModelConfig.from_json(json.loads(checkpoint.read_text()))
    except OSError as error:
        raise CheckpointError(f"{checkpoint}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{checkpoint}: not JSON: {error}") from None


def _render(model: ModelConfig, s: Summary) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    moe = model.moe_layers
    rows = {
        "layers": f"{model.num_hidden_layers}, {len(moe)} of them MoE",
        "experts": f"{model.n_routed_experts} a layer, {model.num_experts_per_tok} per token, "
        f"{model.n_shared_experts} shared",
        "tensors": f"{s.num_tensors:,}",
        "parameters": f"{_count(s.num_parameters)} ({s.num_parameters:,})",
        **{f"  {role}": _count(count) for role, count in s.parameters_by_role.items()},
        "checkpoint": f"{_size(s.total_bytes)} ({s.total_bytes:,} B)",
        **{f"  {role}": _size(count) for role, count in s.bytes_by_role.items()},
        "one expert": f"{_size(s.bytes_per_expert)}",
        "KV cache": f"{s.kv_bytes_per_token:,} B a token in BF16",
    }
    for shard in range(s.num_shards):
        first = shard * s.experts_per_shard
        rows[f"shard {shard}"] = (
            f"experts {first}..{first + s.experts_per_shard - 1} of {len(moe)} layers, "
            f"{_size(s.expert_bytes_per_shard)}"
        )
    for key, value in rows.items():
        table.add_row(key, value)
    return table


def _count(value: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:g}"


def _size(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value / 1e3:.1f} kB"
