"""A cell whose router runs here and whose workers run where Ray puts them. The twin of local/supervisor.py."""

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from moonshard.config import CellConfig
from moonshard.errors import Unavailable
from moonshard_cluster.local.router_process import RouterProcess
from moonshard_cluster.local.supervisor import STOP_S, Child, Death, error_of
from moonshard_cluster.on_ray.placement import PlacedWorker, for_ray, place
from moonshard_cluster.on_ray.session import RaySession
from moonshard_cluster.on_ray.worker_host import local_address

POLL_S = 0.5
# Of one actor, by Ray, before its worker counts as dead.
MAX_RESTARTS = 10


class RayCluster:
    """Use as a context manager: leaving it ends the router and every actor. log_dir: one file per process, kept.

    Raises ConfigError and Unavailable from `start`.
    """

    def __init__(self, config: CellConfig, log_dir: Path, address: str) -> None:
        self.config = for_ray(config)
        self.log_dir = log_dir
        self.router_address = ""
        self.workers: list[PlacedWorker] = []
        self._address = address
        self._session: RaySession | None = None
        self._router: RouterProcess | None = None
        self._adopted: list[Child] = []
        self._read: dict[str, tuple[int, int]] = {}  # (pid, offset) of the logs that are here already

    def __enter__(self) -> "RayCluster":
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self.config.run_dir.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.config.run_dir, ignore_errors=True)

    def start(self) -> None:
        """Place the workers, start the router, then the workers' programs; returns when the router listens."""
        limits = self.config.timeouts
        self._session = session = RaySession(self._address, MAX_RESTARTS)
        self.workers = place(self.config, session.nodes())
        session.reserve(self.workers, limits.join_s)
        here = local_address(self._address) if self._address != "auto" else "127.0.0.1"
        if self.config.transport == "all_to_all":
            meeting = session.meeting_point("expert-0", f"{here}:1", limits.join_s)
            self.config = self.config.model_copy(update={"collective_address": meeting})
        self._start_router()
        port = self.router_address.rpartition(":")[2]
        for worker in self.workers:
            session.run(worker, self.config, f"{here}:{port}")

    def node_ids(self) -> dict[str, str]:
        """Ray's node of each worker, by name."""
        assert self._session is not None
        return self._session.node_ids()

    def wait(self, timeout_s: float | None) -> list[Death]:
        """Block until the router or a worker has ended for good, or timeout_s. Brings the logs here meanwhile."""
        assert self._session is not None
        assert self._router is not None
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = POLL_S if deadline is None else min(POLL_S, max(0.0, deadline - time.monotonic()))
            ended = self._session.ended(left_s)
            self._fetch_logs()
            deaths = [Death(name, 0, status, self._log_path(name)) for name, status in ended.items()]
            if self._router.exitcode is not None:
                deaths.append(Death("router", self._router.pid, self._router.exitcode, self._log_path("router")))
            deaths += [child.death() for child in self._adopted if not child.process.is_alive()]
            if deaths or (deadline is not None and time.monotonic() >= deadline):
                return deaths

    def adopt(self, start: Callable[[], Child]) -> None:
        """Start one more child here, which lives and dies with the cell."""
        self._adopted.append(start())

    def watch(self, told: Callable[[str], None]) -> list[Death]:
        """Ray restarts workers; what it gives up ends the cell."""
        return self.wait(None)

    def drain(self) -> None:
        """Let the router finish what runs and end the workers; bounded by its drain limit."""
        if self._router is None or self._session is None:
            return
        if self._router.is_alive():
            self._signal_router(signal.SIGTERM)
        self._router.join(self.config.timeouts.drain_s + STOP_S)
        deadline = time.monotonic() + STOP_S
        while self._session.running and time.monotonic() < deadline:
            self._session.ended(POLL_S)
        self._fetch_logs()

    def kill(self) -> None:
        """End the router, every actor and what was adopted now."""
        for child in self._adopted:
            child.signal(signal.SIGKILL)
            child.process.join(STOP_S)
            child.process.close()
        self._adopted = []
        if self._router is not None:
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
                if self._router.is_alive():
                    self._signal_router(number)
                    self._router.join(STOP_S if number == signal.SIGKILL else STOP_S / 2)
            self._router.close()
            self._router = None
        if self._session is not None:
            self._session.close()
            self._session = None

    def _start_router(self) -> None:
        path = self.log_dir / "cell.json"
        path.write_text(self.config.model_dump_json())
        self._router = RouterProcess(path, self._log_path("router"))
        told = self.config.run_dir / "router.json"
        deadline = time.monotonic() + self.config.timeouts.join_s
        while not told.exists():
            if self._router.exitcode is not None:
                raise error_of([Death("router", self._router.pid, self._router.exitcode, self._log_path("router"))])
            if time.monotonic() > deadline:
                raise Unavailable(f"the router did not listen within {self.config.timeouts.join_s:g} s")
            time.sleep(0.02)
        self.router_address = str(json.loads(told.read_text())["address"])

    def _signal_router(self, number: int) -> None:
        assert self._router is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._router.pid, number)

    def _fetch_logs(self) -> None:
        assert self._session is not None
        for name, (pid, text) in self._session.read_logs(self._read).items():
            with self._log_path(name).open("ab") as log:
                log.write(text)
            known, offset = self._read.get(name, (pid, 0))
            self._read[name] = (pid, len(text) + (offset if known == pid else 0))

    def _log_path(self, name: str) -> Path:
        return self.log_dir / f"{name}.log"
