"""Restarting the workers of a cell of this machine one after the other, while it serves."""

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from moonshard.errors import ConfigError, FailedPrecondition, Unavailable
from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.client import Client

POLL_S = 0.1
Key = tuple[pb.Role.ValueType, int]


def order(status: pb.GetStatusResponse) -> list[Key]:
    """Shards before attention workers, by rank: neighbours in rank are never copies of one shard."""
    workers = [it for it in status.workers if it.role in (pb.ROLE_EXPERT, pb.ROLE_ATTENTION)]
    return sorted(((it.role, it.rank) for it in workers), key=lambda key: (-key[0], key[1]))


def missing(status: pb.GetStatusResponse) -> int:
    """Workers that are configured and not ready."""
    expected = status.num_attention + status.num_shards * max(1, status.num_replicas)
    ready = [it for it in status.workers if it.role != pb.ROLE_ROUTER and it.state == pb.WORKER_STATE_READY]
    return expected - len(ready)


def restart_workers(client: Client, limit_s: float, told: Callable[[str], None]) -> None:
    """Each is drained where the cell can spare it, asked to end, and must be ready again, under another pid, before the
    next. Rows of a shard without a copy wait for it, sequences of an only attention worker too.

    Raises ConfigError for workers of other machines, Unavailable when one is not back within limit_s.
    """
    _await(client, limit_s, lambda status: missing(status) == 0, "every worker to be ready")
    for role, rank in order(client.status()):
        name = f"{pb.Role.Name(role).removeprefix('ROLE_').lower()}-{rank}"
        worker = _find(client.status(), (role, rank))
        if worker is None:
            raise Unavailable(f"{name} is gone")
        _check_host(worker, name)
        _drain(client, worker, limit_s)
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGTERM)
        pid = worker.pid
        status = _await(client, limit_s, lambda it: _is_back(it, (role, rank), pid), f"{name} to be back")  # noqa: B023
        told(f"{name}: pid {pid} ended, {_pid(status, (role, rank))} serves")


def _check_host(worker: pb.WorkerStatus, name: str) -> None:
    if worker.host != (here := socket.gethostname()):
        raise ConfigError("router", f"{name} runs on {worker.host}, this is {here}: restart it there")


def _drain(client: Client, worker: pb.WorkerStatus, limit_s: float) -> None:
    """Sequences move at once: a restart need not wait for somebody's long answer."""
    with suppress(FailedPrecondition):
        for _ in client.drain(worker.role, worker.rank, False, 0.0, limit_s):
            pass


def _is_back(status: pb.GetStatusResponse, key: Key, old_pid: int) -> bool:
    return missing(status) == 0 and _pid(status, key) not in (None, old_pid)


def _find(status: pb.GetStatusResponse, key: Key) -> pb.WorkerStatus | None:
    return next((it for it in status.workers if (it.role, it.rank) == key), None)


def _pid(status: pb.GetStatusResponse, key: Key) -> int | None:
    worker = _find(status, key)
    return worker.pid if worker else None


def _await(
    client: Client, limit_s: float, holds: Callable[[pb.GetStatusResponse], bool], what: str
) -> pb.GetStatusResponse:
    deadline = time.monotonic() + limit_s
    while not holds(status := client.status()):
        if time.monotonic() > deadline:
            raise Unavailable(f"waited {limit_s:g} s for {what}")
        time.sleep(POLL_S)
    return status
