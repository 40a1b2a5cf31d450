"""The only module that imports ray: connect, reserve, start actors, watch them. Every wait has a limit."""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any

# Read by ray when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from moonshard.config import CellConfig
from moonshard.errors import ConfigError, Unavailable
from moonshard_cluster.on_ray.placement import PlacedWorker, Resources
from moonshard_cluster.on_ray.worker_host import WorkerHost

CONNECT_S = 60.0
KNOCK_S = 5.0
CALL_S = 10.0
LOGS_S = 1.0
# run, read_log and meeting_point side by side.
ACTOR_THREADS = 4


class RaySession:
    """A connection to one Ray cluster and the actors started over it."""

    def __init__(self, address: str, max_restarts: int) -> None:
        _knock(address)
        self._max_restarts = max_restarts
        self._group: Any = None
        self._actors: dict[str, Any] = {}
        self._runs: dict[Any, str] = {}
        _within(CONNECT_S, f"ray at {address}", lambda: _init(address))

    def nodes(self) -> list[Resources]:
        """Total resources of each node that is alive."""
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]

    def reserve(self, workers: Sequence[PlacedWorker], limit_s: float) -> None:
        """A bundle for each worker, and an actor in it. Raises Unavailable when the cluster is too full."""
        self._group = placement_group([dict(worker.bundle) for worker in workers], strategy="SPREAD")
        try:
            ray.get(self._group.ready(), timeout=limit_s)
        except GetTimeoutError:
            left = ray.available_resources()  # type: ignore[no-untyped-call]
            free = ", ".join(f"{value:g} {name}" for name, value in sorted(left.items()))
            raise Unavailable(f"ray did not place {len(workers)} workers within {limit_s:g} s; free: {free}") from None
        for place, worker in enumerate(workers):
            self._actors[worker.name] = self._actor(place, worker)

    def _actor(self, place: int, worker: PlacedWorker) -> Any:
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=place)
        host: Any = ray.remote(WorkerHost)
        return host.options(
            num_cpus=worker.bundle.get("CPU", 0),
            num_gpus=worker.bundle.get("GPU", 0),
            scheduling_strategy=strategy,
            max_restarts=self._max_restarts,
            max_task_retries=self._max_restarts,
            max_concurrency=ACTOR_THREADS,
        ).remote()

    def node_ids(self) -> dict[str, str]:
        """On which node each worker's bundle lies now, by name."""
        bundles = placement_group_table(self._group)["bundles_to_node_id"]
        return {name: bundles[place] for place, name in enumerate(self._actors)}

    def meeting_point(self, name: str, router_address: str, limit_s: float) -> str:
        """A free address on the node of that worker. Raises Unavailable."""
        return str(self._get(self._actors[name].meeting_point.remote(router_address), name, limit_s))

    def run(self, worker: PlacedWorker, config: CellConfig, router_address: str) -> None:
        """Start the worker's program; `ended` tells of its end."""
        run = self._actors[worker.name].run.remote(worker.role, worker.rank, config.model_dump_json(), router_address)
        self._runs[run] = worker.name

    def ended(self, timeout_s: float) -> Mapping[str, int]:
        """Exit status of the workers that have ended for good, by name; blocks until there is one or timeout_s.

        Status 1 stands for an actor that ray has given up.
        """
        if not self._runs:
            return {}
        done, _ = ray.wait(list(self._runs), num_returns=len(self._runs), timeout=0)
        if not done:
            done, _ = ray.wait(list(self._runs), timeout=timeout_s)
        return {self._runs.pop(run): self._status(run) for run in done}

    def _status(self, run: Any) -> int:
        try:
            return int(ray.get(run, timeout=CALL_S))
        except RayError:
            return 1

    @property
    def running(self) -> list[str]:
        return list(self._runs.values())

    def read_logs(self, known: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, bytes]]:
        """(pid of the host, new bytes) by name of those that answer. known: (pid, offset) of what was read before."""
        asked = {
            actor.read_log.options(max_task_retries=0).remote(*known.get(name, (0, 0))): name
            for name, actor in self._actors.items()
        }
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=LOGS_S) if asked else ([], [])
        found = {}
        for reference in done:
            with contextlib.suppress(RayError):
                found[asked[reference]] = ray.get(reference, timeout=CALL_S)
        return found

    def close(self) -> None:
        """Kill the actors (their workers end with them), free the bundles, disconnect."""
        for actor in self._actors.values():
            ray.kill(actor, no_restart=True)
        if self._group is not None:
            remove_placement_group(self._group)
        ray.shutdown()

    def _get(self, reference: Any, name: str, limit_s: float) -> Any:
        try:
            return ray.get(reference, timeout=limit_s)
        except RayError as error:
            raise Unavailable(f"{name} on ray did not answer within {limit_s:g} s: {error}") from None


def _knock(address: str) -> None:
    """Ray tries for ever where nobody listens. Raises ConfigError for what is no address, Unavailable."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise ConfigError(
            "--ray", f"must be HOST:PORT of the cluster's head (6379 by default) or auto, got {address!r}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()
    except OSError as error:
        raise Unavailable(f"no ray at {address}: {error.strerror or error}") from None


def _init(address: str) -> None:
    ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)


def _within(limit_s: float, what: str, call: Any) -> None:
    """Run `call` in a thread of its own, because it cannot be told a limit. Raises Unavailable."""
    outcome: list[BaseException | None] = []

    def attempt() -> None:
        try:
            call()
        except (RayError, OSError, RuntimeError, ValueError, ConnectionError) as error:
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=attempt, name="ray-init", daemon=True)
    thread.start()
    thread.join(limit_s)
    if not outcome:
        raise Unavailable(f"{what} did not let us in within {limit_s:g} s")
    if outcome[0] is not None:
        raise Unavailable(f"{what}: {outcome[0]}") from outcome[0]
