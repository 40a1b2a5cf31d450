"""Real cells for the tests: ten and more processes on this machine, started by the launcher, ended with the test."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from moonshard.errors import Unavailable
from moonshard.v1 import inference_pb2 as pb
from moonshard_cluster.access import Access
from moonshard_cluster.client import Client
from moonshard_cluster.local.plan import plan_cell
from moonshard_cluster.local.progress import wait_ready
from moonshard_cluster.local.supervisor import LocalCluster

ANSWER_S = 120.0
START_S = 60.0


# Counts per expert are told as soon as they are looked at.
OPEN: dict[str, Any] = {"load_window_s": 0, "load_window_rows": 0}
# Nothing rounded that the reference does not round.
EXACT: dict[str, Any] = {"dtype": "float32", "experts": {"activations": "float32"}}


@contextmanager
def running_cell(checkpoint: Path, log_dir: Path, **values: Any) -> Iterator[tuple[LocalCluster, Client]]:
    """A ready cell and a client of it."""
    limits = {"load_s": START_S, "join_s": START_S, "combine_s": 30.0, "drain_s": 10.0}
    router = {"port": 0, **values.pop("router", {})}
    settings = {"checkpoint": checkpoint, "router": router, "timeouts": limits, **values}
    with LocalCluster(plan_cell(settings), log_dir) as cluster:
        cluster.start()
        with Client(cluster.router_address, Access.of_config(cluster.config.router)) as client:
            wait_ready(cluster, client)
            yield cluster, client
        cluster.drain()


@dataclass(frozen=True)
class Answered:
    """num_cached: prompt tokens that came from the prefix cache."""

    token_ids: list[int]
    num_cached: int


def ask(client: Client, prompt: list[int], sampling: pb.SamplingParams) -> Answered:
    """One whole answer."""
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=sampling)
    responses = list(client.generate(request, ANSWER_S))
    return Answered([token for r in responses for token in r.token_ids], responses[-1].finish.usage.cached_tokens)


def greedy(client: Client, prompt: list[int], max_tokens: int) -> list[int]:
    """Token ids of a greedy continuation that does not stop at the end of a turn."""
    sampling = pb.SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    return ask(client, prompt, sampling).token_ids


def moonshard(
    *arguments: str, stdin: str | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, to its end. environment: variables beside this process's own."""
    command = [sys.executable, "-m", "moonshard_cluster.cli", *arguments]
    told = {**os.environ, **(environment or {})}
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, env=told)


class CommandLineCell:
    """`moonshard up` as a user starts it: a process of its own, read line by line.

    temporary: where it and all that it starts put what is to be gone afterwards.
    """

    def __init__(self, *arguments: str) -> None:
        # Not a test's own folder: paths of sockets have 107 characters at most.
        self.temporary = Path(tempfile.mkdtemp(prefix="cell-"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moonshard_cluster.cli", "up", "--port", "0", *self._http(arguments), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(self.temporary)},
        )
        self.output = ""
        self.router_address = ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(START_S) or not self.router_address:
            self.close()
            raise AssertionError(f"not ready:\n{self.output}")
        self.members = psutil.Process(self.process.pid).children(recursive=True)

    @staticmethod
    def _http(arguments: tuple[str, ...]) -> list[str]:
        """Most tests need no gateway, which takes a second to start."""
        return [] if "--http-port" in arguments else ["--no-http"]

    def member(self, name: str) -> psutil.Process:
        """ "launcher", "router", "attention-0", "expert-3" ...: by the pids that the router reports."""
        if name == "launcher":
            return psutil.Process(self.process.pid)
        role, _, rank = name.partition("-")
        with Client(self.router_address) as client:
            pids = {(int(worker.role), worker.rank): worker.pid for worker in client.status().workers}
        number = {"router": 1, "attention": 2, "expert": 3}[role]
        return psutil.Process(pids[number, int(rank or 0)])

    def await_member(self, name: str, timeout_s: float) -> psutil.Process:
        """The process once it has joined and the cell is ready."""
        deadline = time.monotonic() + timeout_s
        while True:
            with Client(self.router_address) as client, suppress(KeyError, Unavailable):
                if client.status().ready:
                    return self.member(name)
            assert time.monotonic() < deadline, f"{name} is not back:\n{self.output}"
            time.sleep(0.05)

    def await_other(self, name: str, pid: int, timeout_s: float) -> psutil.Process:
        """The process once it is another one than `pid`, has joined, and the cell is ready."""
        deadline = time.monotonic() + timeout_s
        while (found := self.await_member(name, timeout_s)).pid == pid:
            assert time.monotonic() < deadline, f"{name} is the old one:\n{self.output}"
            time.sleep(0.05)
        return found

    def wait_gone(self, timeout_s: float) -> list[psutil.Process]:
        """Wait for the launcher and everything it started; those still alive after timeout_s."""
        _, alive = psutil.wait_procs([psutil.Process(p.pid) for p in self.members if p.is_running()], timeout_s)
        return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]

    def finish(self, timeout_s: float) -> int:
        status = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return status

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """Whatever happened, nothing of this cell survives the test."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in getattr(self, "members", []):
            if process.is_running():
                process.kill()
        self.process.wait(10)
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.output += line
            if found := re.search(r"gRPC on ([\d.]+:\d+)", line):
                self.router_address = found[1]
                self._ready.set()
        self._ready.set()
