"""Starts the processes of a cell on this machine, starts workers that die again, and leaves none behind."""

import contextlib
import json
import math
import multiprocessing
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from moonshard.config import CellConfig
from moonshard.errors import CheckpointError, MoonshardError, Unavailable
from moonshard.process import USER_ERROR_STATUS
from moonshard_cluster.local import children
from moonshard_cluster.local.program import Program
from moonshard_cluster.local.restarts import RestartBook, RestartRule
from moonshard_cluster.local.router_process import RouterProcess

# After the drain, workers get this long to end by themselves; then they are killed.
STOP_S = 5.0
LAST_LINES = 12


@dataclass(frozen=True, slots=True)
class Death:
    """A child that ended though nobody asked it to."""

    name: str
    pid: int
    exit_code: int
    log_path: Path

    def __str__(self) -> str:
        lines = self.last_lines()
        told = "its last lines:\n  " + "\n  ".join(lines) if lines else "it logged nothing"
        return f"{self.brief()}; {told}\n  full log: {self.log_path}"

    def brief(self) -> str:
        how = f"was killed by {_signal_name(-self.exit_code)}" if self.exit_code < 0 else f"exited {self.exit_code}"
        return f"{self.name} (pid {self.pid}) {how}"

    @property
    def is_users_to_mend(self) -> bool:
        return self.exit_code == USER_ERROR_STATUS

    def complaint(self) -> str:
        """The process's own words about what is wrong: its last error, without time and level."""
        errors = [line.partition(" ERROR ")[2] for line in self.last_lines() if " ERROR " in line]
        errors = [error.replace(": stopping: ", ": ", 1) for error in errors]
        return errors[-1] if errors else str(self)

    def last_lines(self) -> list[str]:
        with contextlib.suppress(OSError):
            return self.log_path.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return []


def error_of(dead: Sequence[Death]) -> MoonshardError:
    """What to tell the user about children that ended by themselves."""
    if refused := [death for death in dead if death.is_users_to_mend]:
        return CheckpointError(refused[0].complaint())
    return Unavailable("; ".join(map(str, dead)))


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


@dataclass(frozen=True, slots=True)
class Child:
    name: str
    process: BaseProcess | Program
    log_path: Path

    @property
    def pid(self) -> int:
        pid = self.process.pid
        assert pid is not None, "a child is registered after its start"
        return pid

    def death(self) -> Death:
        self.process.join(timeout=1)
        code = self.process.exitcode
        return Death(self.name, self.pid, -signal.SIGKILL if code is None else code, self.log_path)

    def signal(self, number: int) -> None:
        if self.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class LocalCluster:
    """One cell on this machine. Use as a context manager: leaving it stops every process and removes run_dir.

    config: complete, "auto" resolved, with a run_dir of its own. log_dir: one file per process, kept.
    """

    def __init__(self, config: CellConfig, log_dir: Path) -> None:
        self.config = config
        self.log_dir = log_dir
        self.router_address = ""
        self.children: list[Child] = []
        self.num_restarts = 0
        self._adopted: dict[str, Callable[[], Child]] = {}
        self._restarts = RestartBook(RestartRule())
        self._due_s: dict[str, float] = {}  # of dead workers: when they are started again
        self._end_of_watch, self._end_watch = os.pipe()
        # Beside the logs: what each process was told belongs to the story they tell.
        self._config_path = log_dir / "cell.json"

    def __enter__(self) -> "LocalCluster":
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self.config.run_dir.mkdir(parents=True, exist_ok=True)
        self._config_path.write_text(self.config.model_dump_json())
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for child in self.children:
            child.process.close()
        os.close(self._end_of_watch)
        os.close(self._end_watch)
        shutil.rmtree(self.config.run_dir, ignore_errors=True)

    def start(self) -> None:
        """Start all processes; returns when the router listens. Raises Unavailable with a dead child's last words."""
        # Read by torch's thread pool when the fork server loads it: waiting threads that spin take the cores from the
        # shards they wait for, which made a cell on two cores twenty times slower.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        multiprocessing.get_context("forkserver").set_forkserver_preload(["moonshard_cluster.local.preload"])
        config = self.config
        self.children.append(self._start_router())
        self.router_address = self._await_router()
        self._pin_port()
        names = [("attention", rank) for rank in range(config.num_attention)]
        names += [("expert", rank) for rank in range(config.num_shards * config.num_replicas)]
        self.children += [self._start_worker(role, rank) for role, rank in names]

    def adopt(self, start: Callable[[], Child]) -> None:
        """Start one more child that lives and dies with the cell; `watch` starts it again as it does workers."""
        child = start()
        self._adopted[child.name] = start
        self.children.append(child)

    def wait(self, timeout_s: float | None) -> list[Death]:
        """Block until a child dies, `end_watch`, or timeout_s; the dead, in the order of starting."""
        alive = {child.process.sentinel: child for child in self.children if child.name not in self._due_s}
        ended = set(wait([*alive, self._end_of_watch], timeout_s))
        return [child.death() for sentinel, child in alive.items() if sentinel in ended]

    def watch(self, told: Callable[[str], None]) -> list[Death]:
        """Block, starting workers that die again, until `end_watch` or a death that cannot be mended so: that one.

        told: hears of every death and restart.
        """
        while not _is_readable(self._end_of_watch):
            for death in self.wait(self._until_due_s()):
                pause_s = self._restarts.died(death.name, time.monotonic())
                if pause_s is None:
                    return [death]
                told(f"{death.brief()}; starting it again{f' in {pause_s:g} s' if pause_s else ''}")
                self._due_s[death.name] = time.monotonic() + pause_s
            self._restart_due()
        return []

    def end_watch(self) -> None:
        """From any thread: `watch` returns, once and for all."""
        os.write(self._end_watch, b".")

    def _until_due_s(self) -> float | None:
        return max(0.0, min(self._due_s.values()) - time.monotonic()) if self._due_s else None

    def _restart_due(self) -> None:
        for place, child in enumerate(self.children):
            if self._due_s.get(child.name, math.inf) <= time.monotonic():
                child.process.close()
                self.children[place] = self._start_again(child.name)
                self.num_restarts += 1
                del self._due_s[child.name]

    def _start_again(self, name: str) -> Child:
        if name in self._adopted:
            return self._adopted[name]()
        role, _, rank = name.partition("-")
        return self._start_worker(role, int(rank)) if rank else self._start_router()

    def _pin_port(self) -> None:
        """A router that is started again listens where the workers and the clients look for it."""
        port = int(self.router_address.rpartition(":")[2])
        self.config = self.config.model_copy(update={"router": self.config.router.model_copy(update={"port": port})})
        self._config_path.write_text(self.config.model_dump_json())

    def _start_router(self) -> Child:
        log_path = self.log_dir / "router.log"
        return Child("router", RouterProcess(self._config_path, log_path), log_path)

    def _start_worker(self, role: str, rank: int) -> Child:
        log_path = self.log_dir / f"{role}-{rank}.log"
        arguments = (role, rank, self._config_path, self.router_address, log_path)
        process = multiprocessing.get_context("forkserver").Process(target=children.run_worker, args=arguments)
        process.start()
        return Child(f"{role}-{rank}", process, log_path)

    def drain(self) -> None:
        """Let the router finish what runs and end the workers; bounded by its drain limit."""
        router = self.children[0]
        router.signal(signal.SIGTERM)
        _join([router], self.config.timeouts.drain_s + STOP_S)
        for child in self.children[1:]:
            child.signal(signal.SIGTERM)
        _join(self.children[1:], STOP_S)

    def kill(self) -> None:
        """End every process now: asked first, killed after STOP_S."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            alive = [child for child in self.children if child.process.is_alive()]
            for child in alive:
                # A router that drains takes a second signal to stop at once.
                child.signal(number)
                if child.name == "router":
                    child.signal(number)
            _join(alive, STOP_S)

    def _await_router(self) -> str:
        """The router writes its address when it listens; it is ours to notice should it die first."""
        told = self.config.run_dir / "router.json"
        deadline = time.monotonic() + self.config.timeouts.join_s
        while time.monotonic() < deadline:
            if told.exists():
                address = json.loads(told.read_text())["address"]
                assert isinstance(address, str)
                return address
            if dead := self.wait(0.02):
                raise error_of(dead)
        raise Unavailable(f"the router did not listen within {self.config.timeouts.join_s:g} s")


def _is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def _join(children_: Sequence[Child], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    for child in children_:
        child.process.join(timeout=max(0.0, deadline - time.monotonic()))
