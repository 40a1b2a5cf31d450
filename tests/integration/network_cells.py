"""A cell over TCP one of whose shards sits in a network of its own: programs started one by one, as pods are."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.chaos.run import await_ready
from moonshard_cluster.chaos.streams import run_once, run_until
from moonshard_cluster.chaos.verdict import Report, judge
from moonshard_cluster.client import Client
from moonshard_cluster.local.plan import plan_cell
from tests.integration.networks import Network, network

START_S = 120.0


@dataclass
class NetworkCell:
    """Shard 0, its first copy, is the one behind the network."""

    client: Client
    network: Network

    def port(self) -> int:
        """Where the shard's links listen."""
        (address,) = [
            worker.data_address
            for worker in self.client.status().workers
            if worker.role == pb.ROLE_EXPERT and worker.rank == 0
        ]
        return int(address.rpartition(":")[2])


@contextmanager
def network_cell(checkpoint: Path, folder: Path, num_shards: int, num_replicas: int) -> Iterator[NetworkCell]:
    """Ready: two attention workers and every shard."""
    config = plan_cell(
        {
            "checkpoint": checkpoint, "num_shards": num_shards, "num_replicas": num_replicas, "num_attention": 2,
            "links": "tcp", "router": {"host": "0.0.0.0", "port": 0}, "network": {"bind_host": "0.0.0.0"},
        }
    )  # fmt: skip
    file = folder / "cell.json"
    file.write_text(config.model_dump_json())
    with network() as laid, ExitStack() as started:

        def start(name: str, *arguments: str, wrap: Callable[[Sequence[str]], Sequence[str]] = tuple) -> None:
            command = wrap([sys.executable, "-m", arguments[0], "--config", str(file), *arguments[1:]])
            log = started.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            started.callback(_end, process)

        start("router", "moonshard.router")
        port = _router_port(config.run_dir / "router.json")
        outside = "--router", f"{laid.outside}:{port}", "--advertise", laid.outside
        inside = "--router", f"{laid.outside}:{port}", "--advertise", laid.inside
        start("expert-0", "moonshard.experts", "--rank", "0", *inside, wrap=laid.command_inside)
        for rank in range(1, num_shards * num_replicas):
            start(f"expert-{rank}", "moonshard.experts", "--rank", str(rank), *outside)
        for rank in range(2):
            start(f"attention-{rank}", "moonshard.attention", "--rank", str(rank), *outside)
        with Client(f"127.0.0.1:{port}") as client:
            await_ready(client, START_S)
            yield NetworkCell(client, laid)


def suffer(cell: NetworkCell, fault: Callable[[int], None], load: tuple[int, int, float], fault_s: float) -> Report:
    """The verdict on a load (streams, tokens, limit in seconds) while the shard's port has the fault for fault_s."""
    undisturbed = run_once(cell.client, *load)
    over = threading.Event()
    results = run_until(over, cell.client, *load)
    num_dropped = 0
    try:
        fault(cell.port())
        time.sleep(fault_s)  # how long it lasts, not a wait for something
    finally:
        num_dropped = cell.network.heal()
        over.set()
        report = judge(undisturbed, results(), [f"{num_dropped} packets dropped"], None)
    assert num_dropped > 0, "nobody noticed the fault"
    return report


def _router_port(run_file: Path) -> int:
    deadline = time.monotonic() + START_S
    while not run_file.exists():
        assert time.monotonic() < deadline, "the router does not listen"
        time.sleep(0.05)
    return int(json.loads(run_file.read_text())["address"].rpartition(":")[2])


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
