"""`moonshard experts`: which experts are hot, in the terminal, in a file, as a picture."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from moonshard.errors import ConfigError
from moonshard_cluster.client import DEFAULT_ROUTER, Client
from moonshard_cluster.load.matrix import ExpertLoad, from_response, to_line
from moonshard_cluster.load.screen import render


def experts(
    router: Annotated[str, typer.Option("--router", help="HOST:PORT of the router")] = DEFAULT_ROUTER,
    window_s: Annotated[float, typer.Option("--window", help="seconds to look back; 0: since the start", min=0)] = 60.0,
    every_s: Annotated[float, typer.Option("--every", help="seconds between two readings", min=0.2)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="read once and end")] = False,
    json: Annotated[bool, typer.Option("--json", help="print each reading as a line of JSON")] = False,
    record: Annotated[
        Path | None, typer.Option("--record", help="append each reading of the totals to this file")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="draw one reading as a PNG and end")] = None,
) -> None:
    """Show the load of every expert of every layer, as the shards tell it."""
    console = Console()
    with Client(router) as client:

        def read(window_s: float) -> ExpertLoad:
            return from_response(client.load(window_s))

        if plot:
            from moonshard_cluster.load.picture import draw

            draw(read(window_s), plot)
        elif json or once or not console.is_terminal:
            _print(console, lambda: read(window_s), lambda: _record(record, read), json, None if once else every_s)
        else:
            _watch(console, lambda: read(window_s), lambda: _record(record, read), every_s)


def _record(path: Path | None, read: Callable[[float], ExpertLoad]) -> None:
    """Totals, so that the difference of two lines tells of the time between them."""
    if path is None:
        return
    line = to_line(read(0.0))
    try:
        with path.open("a") as file:
            file.write(line + "\n")
    except OSError as error:
        raise ConfigError("--record", f"cannot write {path}: {error.strerror}") from None


def _print(
    console: Console, read: Callable[[], ExpertLoad], record: Callable[[], None], json: bool, every_s: float | None
) -> None:
    while True:
        load = read()
        if json:
            sys.stdout.write(to_line(load) + "\n")
            sys.stdout.flush()
        else:
            console.print(render(load, console.width, 60))
        record()
        if every_s is None:
            return
        time.sleep(every_s)


def _watch(console: Console, read: Callable[[], ExpertLoad], record: Callable[[], None], every_s: float) -> None:
    with Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(render(read(), console.width, console.height), refresh=True)
                record()
                time.sleep(every_s)
        except KeyboardInterrupt:
            pass
