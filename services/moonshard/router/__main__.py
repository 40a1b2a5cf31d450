"""python -m moonshard.router --config FILE [--lifeline]

Exit status: 0 after a drain or when the launcher is gone, 2 when a setting or the checkpoint is wrong.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from moonshard import log
from moonshard.config import CellConfig
from moonshard.errors import MoonshardError
from moonshard.metrics import new_registry
from moonshard.process import USER_ERROR_STATUS
from moonshard.router.app import Router
from moonshard.router.served_model import ServedModel, load_served_model

logger = logging.getLogger(__name__)


class Stop:
    """Why the router ends. The first termination drains, the second cuts; a lost launcher cuts at once."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.cut = asyncio.Event()
        self.reason = ""

    def terminate(self, reason: str) -> None:
        if self.requested.is_set():
            self.cut.set()
        self.reason = self.reason or reason
        self.requested.set()

    def abandon(self, reason: str) -> None:
        self.terminate(reason)
        self.cut.set()


def main() -> int:
    arguments = _parse()
    log.setup("router")
    try:
        config = CellConfig.read(arguments.config)
        return asyncio.run(_run(config, load_served_model(config), arguments.lifeline))
    except MoonshardError as error:
        logger.error("%s", error)
        return USER_ERROR_STATUS


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="moonshard.router", description="The router of one cell.")
    parser.add_argument("--config", type=Path, required=True, help="the cell's configuration, JSON or TOML")
    parser.add_argument("--lifeline", action="store_true", help="end when standard input reaches its end")
    return parser.parse_args()


async def _run(config: CellConfig, model: ServedModel, lifeline: bool) -> int:
    stop = Stop()
    _listen(stop, lifeline)
    router = Router(config, model, new_registry())
    await router.start()
    await _first(stop.requested.wait(), router.asked_to_leave.wait())
    if not stop.cut.is_set():
        # A SIGTERM while it leaves is the usual end of a pod; the second one cuts.
        leaves = router.asked_to_leave.is_set() and not stop.requested.is_set()
        await _first(router.leave() if leaves else router.drain(), stop.cut.wait())
    reason = stop.reason or "asked to make way"
    await router.close(reason)
    logger.info("ended: %s", reason)
    return 0


async def _first(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait for one of them, which may fail; the others are cancelled."""
    tasks = [asyncio.create_task(it) for it in waits]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    for task in done:
        task.result()


def _listen(stop: Stop, lifeline: bool) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.terminate, "SIGTERM")
    if not lifeline:
        loop.add_signal_handler(signal.SIGINT, stop.terminate, "interrupted")
        return
    # Ctrl-C reaches the whole foreground group: with a launcher, the launcher decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch_lifeline, args=(loop, stop), name="lifeline", daemon=True).start()


def _watch_lifeline(loop: asyncio.AbstractEventLoop, stop: Stop) -> None:
    stdin = sys.stdin.fileno()
    select.select([stdin], [], [])
    while os.read(stdin, 4096):
        pass
    with contextlib.suppress(RuntimeError):  # the loop has ended by itself
        loop.call_soon_threadsafe(stop.abandon, "the launcher is gone")


if __name__ == "__main__":
    sys.exit(main())
