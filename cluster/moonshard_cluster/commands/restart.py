"""`moonshard restart`: every worker anew, one after the other, while the cell serves."""

from typing import Annotated

import typer
from rich.console import Console

from moonshard.errors import ConfigError
from moonshard_cluster.client import DEFAULT_ROUTER, Client
from moonshard_cluster.local.rolling import restart_workers


def restart(
    rolling: Annotated[bool, typer.Option("--rolling", help="one after the other; there is no other way")] = False,
    router: Annotated[str, typer.Option("--router", help="HOST:PORT of the router")] = DEFAULT_ROUTER,
    limit_s: Annotated[float, typer.Option("--limit", min=1, help="seconds for each to be back")] = 600.0,
) -> None:
    """Restart the shards and attention workers of a cell that `moonshard up` runs on this machine.

    Requests go on: rows of a shard go to its replica or wait for it, sequences of an attention worker move.
    """
    if not rolling:
        raise ConfigError("--rolling", "must be given: all at once would be a stop and a start")
    console = Console(stderr=True)
    with Client(router) as client:
        restart_workers(client, limit_s, lambda text: console.print(text, markup=False, highlight=False))
