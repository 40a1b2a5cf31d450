"""Watches a starting cell: a bar per loading worker until the router says it is ready."""

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from moonshard.config import CellConfig
from moonshard.errors import Unavailable
from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.client import Client
from moonshard_cluster.local.supervisor import Death, error_of

REFRESH_S = 0.1


class Launched(Protocol):
    """A cell that a launcher has started: on this machine or on Ray."""

    config: CellConfig

    def wait(self, timeout_s: float | None) -> list[Death]: ...


class Watcher(Protocol):
    """Told of every status on the way to readiness."""

    def update(self, found: pb.GetStatusResponse) -> None: ...


def wait_ready(cluster: Launched, client: Client, watcher: Watcher | None = None) -> pb.GetStatusResponse:
    """Block until the cell is ready; raises Unavailable with a dead child's last words, or after load_s."""
    limit_s = cluster.config.timeouts.load_s
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        found = _status(cluster, client)
        if watcher:
            watcher.update(found)
        if found.ready:
            return found
        if dead := cluster.wait(REFRESH_S):
            raise error_of(dead)
    raise Unavailable(f"the cell was not ready within {limit_s:g} s")


def _status(cluster: Launched, client: Client) -> pb.GetStatusResponse:
    try:
        return client.status()
    except Unavailable:
        # A router that does not answer has most likely died; its own last words say more than the broken call.
        if dead := cluster.wait(1.0):
            raise error_of(dead) from None
        raise


class LoadBars:
    """One bar per worker, as it joins. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        name, state = TextColumn("{task.description:<12}"), TextColumn("{task.fields[state]}")
        self._progress = Progress(name, BarColumn(), DownloadColumn(), state, console=console, transient=True)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "LoadBars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, found: pb.GetStatusResponse) -> None:
        for worker in sorted(found.workers, key=lambda w: (w.role, w.rank)):
            if worker.role == pb.ROLE_ROUTER:
                continue
            name = f"{pb.Role.Name(worker.role).removeprefix('ROLE_').lower()}-{worker.rank}"
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, total=None, state="")
            state = pb.WorkerState.Name(worker.state).removeprefix("WORKER_STATE_").lower()
            total = worker.total_bytes or None
            done = worker.total_bytes if worker.state == pb.WORKER_STATE_READY else worker.loaded_bytes
            self._progress.update(self._tasks[name], total=total, completed=done, state=state)
