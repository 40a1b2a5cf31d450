"""`moonshard drain`: take a worker, or the router, out of service before its process ends."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from moonshard.config import CellConfig
from moonshard.errors import ConfigError, Unavailable
from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.access import Access
from moonshard_cluster.client import DEFAULT_ROUTER, Client


class Part(Enum):
    """A shard by its number and copy; an expert worker by its rank, as logs name it."""

    SHARD = "shard"
    EXPERT = "expert"
    ATTENTION = "attention"
    ROUTER = "router"


ROLES = {
    Part.SHARD: pb.ROLE_EXPERT,
    Part.EXPERT: pb.ROLE_EXPERT,
    Part.ATTENTION: pb.ROLE_ATTENTION,
    Part.ROUTER: pb.ROLE_ROUTER,
}


def drain(
    part: Annotated[Part, typer.Argument(help="as in: shard 3, expert 11, attention 0, router")],
    number: Annotated[int | None, typer.Argument(help="which; of an expert worker its rank", envvar="RANK")] = None,
    router: Annotated[
        str, typer.Option("--router", envvar="MOONSHARD_ROUTER", help="HOST:PORT of the router")
    ] = DEFAULT_ROUTER,
    replica: Annotated[int, typer.Option("--replica", min=0, help="of a shard: which copy")] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="until the cell can spare it, instead of failing")] = False,
    limit_s: Annotated[float, typer.Option("--limit", min=1, max=86_400, help="seconds for all of it")] = 600.0,
    finish_s: Annotated[
        float | None,
        typer.Option("--finish", min=0, max=86_400, help="seconds before sequences move [timeouts.drain_s]"),
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="put it back into service")] = False,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="the cell's, for its certificates and operator's key")
    ] = None,
) -> None:
    """Take a worker out of service; returns when its process may end.

    A shard leaves only while other copies of its experts are ready. An attention worker gets nothing new; sequences
    that do not end within --finish go on at other workers. The process stays, idle, until something ends it, or --undo.
    The router refuses new requests, finishes those it has and ends; workers keep their weights for its successor.
    Exit status 1 when the cell cannot spare the worker.
    """
    console = Console(stderr=True)
    access = Access.of_config(CellConfig.read(config_file).router) if config_file else None
    with Client(router, access) as client:
        role, rank = ROLES[part], _rank(client, part, number, replica)
        name = "router" if part is Part.ROUTER else f"{'expert' if role == pb.ROLE_EXPERT else 'attention'}-{rank}"
        tell: Callable[[str], None] = lambda text: console.print(  # noqa: E731
            f"{name} {text}", markup=False, highlight=False
        )
        if undo:
            client.undrain(role, rank)
            tell("is back in service")
        else:
            follow(client, role, rank, wait, finish_s, limit_s, tell)


def follow(
    client: Client,
    role: pb.Role.ValueType,
    rank: int,
    waits: bool,
    finish_s: float | None,
    limit_s: float,
    tell: Callable[[str], None],
) -> None:
    """Drain and tell of each step. Raises FailedPrecondition, or Unavailable when it is not done within limit_s."""
    told = ""
    try:
        for progress in client.drain(role, rank, waits, finish_s, limit_s):
            if progress.is_drained:
                tell("is drained")
                return
            text = f"has {progress.num_sequences} sequences to finish"
            if progress.waits_for:
                text = f"has to wait: {progress.waits_for}"
            if text != told:
                tell(text)
            told = text
    except Unavailable as error:
        raise Unavailable(f"{told}; {error}" if told else str(error)) from None
    raise Unavailable(f"not drained: {told or 'the router ended'}")


def _rank(client: Client, part: Part, number: int | None, replica: int) -> int:
    if part is Part.ROUTER:
        return 0
    if number is None:
        raise ConfigError("number", f"which {part.value}? As in: moonshard drain {part.value} 0")
    if part is not Part.SHARD:
        return number
    status = client.status()
    if not 0 <= number < status.num_shards:
        raise ConfigError("number", f"shards of this cell are 0..{status.num_shards - 1}, got {number}")
    if replica >= status.num_replicas:
        raise ConfigError("--replica", f"shards of this cell have copies 0..{status.num_replicas - 1}, got {replica}")
    return number + status.num_shards * replica
