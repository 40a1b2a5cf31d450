"""A cell on a Ray cluster of three nodes on this machine: same answers as the local launcher, and a node that dies."""

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from moonshard.errors import ConfigError, Unavailable
from moonshard_cluster.client import Client
from moonshard_cluster.local.plan import free_port, plan_cell
from moonshard_cluster.local.progress import wait_ready
from moonshard_cluster.on_ray.launcher import RayCluster
from tests.integration.cells import EXACT, greedy, running_cell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

PROMPT, TOKENS = [5, 6, 7, 8], 12
STREAMS, LONG = 8, 200
LIMITS = {"load_s": 120.0, "join_s": 90.0, "combine_s": 60.0, "drain_s": 10.0}


@pytest.fixture(scope="module")
def ray_nodes() -> Iterator[Any]:
    """Three nodes of four CPUs; a dead one is noticed within seconds."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    quick = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    small = {"num_cpus": 4, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "_system_config": quick})
    try:
        small.pop("include_dashboard")
        for _ in range(2):
            cluster.add_node(**small)
        yield cluster
    finally:
        cluster.shutdown()


def test_a_cell_on_three_nodes_answers_as_the_local_one_does(
    ray_nodes: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with running_cell(tiny_checkpoint, tmp_path / "local", **EXACT) as (_, client):
        expected = greedy(client, PROMPT, TOKENS)
    config = plan_cell({"checkpoint": tiny_checkpoint, "router": {"port": 0}, "timeouts": LIMITS, **EXACT})
    with RayCluster(config, tmp_path / "ray", ray_nodes.address) as cluster:
        cluster.start()
        with Client(cluster.router_address) as client:
            found = wait_ready(cluster, client)
            assert {worker.name for worker in cluster.workers} == {"attention-0", *(f"expert-{s}" for s in range(8))}
            assert len(found.workers) == 10
            assert greedy(client, PROMPT, TOKENS) == expected
        cluster.drain()
        assert "loaded experts" in (tmp_path / "ray" / "expert-3.log").read_text()


def test_a_killed_nodes_shards_come_back_elsewhere_and_no_request_fails(
    ray_nodes: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    spare = ray_nodes.add_node(num_cpus=4, object_store_memory=100 << 20)
    assert spare is not None
    shape = {"num_shards": 2, "num_replicas": 2, "num_attention": 1}
    config = plan_cell({"checkpoint": tiny_checkpoint, "router": {"port": 0}, "timeouts": LIMITS, **EXACT, **shape})
    with RayCluster(config, tmp_path / "ray", ray_nodes.address) as cluster:
        cluster.start()
        with Client(cluster.router_address) as client, ThreadPoolExecutor(STREAMS) as pool:
            wait_ready(cluster, client)
            expected = greedy(client, PROMPT, LONG)
            home = Event()
            streams = [pool.submit(_ask_until, home, client) for _ in range(STREAMS)]
            try:
                lost = _kill_a_node(ray_nodes, cluster.node_ids())
                deadline = time.monotonic() + 90
                # A killed node's workers answer on for a moment: full coverage alone may be that of before.
                while lost in cluster.node_ids().values() or client.status().coverage.min_copies < 2:
                    assert time.monotonic() < deadline, client.status()
                    assert cluster.wait(0.5) == []
            finally:
                home.set()
            for stream in streams:
                answers = stream.result(60)
                assert answers
                assert set(answers) == {tuple(expected)}
            assert greedy(client, PROMPT, LONG) == expected
        cluster.drain()


def _ask_until(told: Event, client: Client) -> list[tuple[int, ...]]:
    """Answers of one stream after another, the last one begun before `told` was set."""
    answers = [tuple(greedy(client, PROMPT, LONG))]
    while not told.is_set():
        answers.append(tuple(greedy(client, PROMPT, LONG)))
    return answers


def _kill_a_node(ray_nodes: Any, node_ids: dict[str, str]) -> str:
    """Not the head's and not the attention worker's; one copy of a shard at most is on it."""
    kept = {node_ids["attention-0"], ray_nodes.head_node.node_id}
    victim = next(node for node in ray_nodes.worker_nodes if node.node_id in set(node_ids.values()) - kept)
    ray_nodes.remove_node(victim, allow_graceful=False)
    return str(victim.node_id)


def test_nobody_listens() -> None:
    from moonshard_cluster.on_ray.session import RaySession

    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"no ray at 127\.0\.0\.1"):
        RaySession(f"127.0.0.1:{free_port()}", 0)
    assert time.monotonic() - started < 10
    with pytest.raises(ConfigError, match="must be HOST:PORT"):
        RaySession("ray://here", 0)


def test_a_port_that_is_not_rays_ends_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from moonshard_cluster.on_ray import session

    monkeypatch.setattr(session, "CONNECT_S", 3.0)
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(Unavailable, match="did not let us in within 3 s"):
        session.RaySession(f"127.0.0.1:{silent.getsockname()[1]}", 0)
