"""What the processes of a running cell export, read by real Prometheus tools."""

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from moonshard.v1 import control_pb2
from moonshard_cluster.client import Client
from moonshard_cluster.local.plan import free_port
from moonshard_cluster.local.supervisor import LocalCluster
from tests.integration.cells import greedy
from tests.tools import require_tool

PROMPT_TOKENS, NEW_TOKENS, TOP_K, MOE_LAYERS = 9, 4, 8, (1, 2)


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        text: str = response.read().decode()
        return text


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def expert_tokens(client: Client) -> dict[tuple[int, int], float]:
    """(layer, expert) -> tokens, over all shards."""
    found: dict[tuple[int, int], float] = {}
    for worker in client.status().workers:
        if worker.role == control_pb2.ROLE_EXPERT:
            for (name, labels), value in samples(scrape(worker.metrics_address)).items():
                if name == "moonshard_expert_tokens_total":
                    told = dict(labels)
                    key = int(told["layer"]), int(told["expert"])
                    assert key not in found, f"two shards export {key}"
                    found[key] = value
    return found


def settled_tokens(client: Client, total: float, limit_s: float = 10.0) -> dict[tuple[int, int], float]:
    """Once the shards have told of `total`: they tell a moment after they have served, and offer no event."""
    deadline = time.monotonic() + limit_s
    while sum((found := expert_tokens(client)).values()) != total:
        assert time.monotonic() < deadline, f"{sum(found.values())} of {total} are told"
        time.sleep(0.1)
    return found


def test_every_expert_of_every_layer_is_exported_once_and_counts_its_tokens(client: Client) -> None:
    before = expert_tokens(client)
    assert sorted(before) == [(layer, expert) for layer in MOE_LAYERS for expert in range(384)]
    greedy(client, list(range(40, 40 + PROMPT_TOKENS)), NEW_TOKENS)
    rows = PROMPT_TOKENS + NEW_TOKENS - 1  # the last token is never run
    after = settled_tokens(client, sum(before.values()) + rows * TOP_K * len(MOE_LAYERS))
    for layer in MOE_LAYERS:
        grown = [after[layer, expert] - before[layer, expert] for expert in range(384)]
        assert sum(grown) == rows * TOP_K
        assert max(grown) <= rows
        assert sum(g > 0 for g in grown) > TOP_K


def test_promtool_finds_nothing_to_criticise_in_any_process(client: Client) -> None:
    promtool = require_tool("promtool")
    workers = client.status().workers
    assert len(workers) == 10
    for worker in workers:
        text = scrape(worker.metrics_address)
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"{worker.metrics_address}: {done.stdout}{done.stderr}"
        assert "_created" not in text


def test_requests_and_tokens_are_counted_by_the_router(client: Client) -> None:
    router = next(w for w in client.status().workers if w.role == control_pb2.ROLE_ROUTER)
    model = (("model_name", "tiny"),)
    before = samples(scrape(router.metrics_address))
    greedy(client, [1, 2, 3, 4, 5], 7)
    after = samples(scrape(router.metrics_address))
    grown = {key: value - before.get(key, 0.0) for key, value in after.items()}
    assert grown["moonshard_prompt_tokens_total", model] == 5
    assert grown["moonshard_generation_tokens_total", model] == 7
    assert grown["moonshard_requests_total", (("finish_reason", "length"), *model)] == 1
    assert grown["moonshard_time_to_first_token_seconds_count", model] == 1
    assert grown["moonshard_inter_token_latency_seconds_count", model] == 6


@pytest.fixture
def prometheus(shared_cell: tuple[LocalCluster, Client], tmp_path: Path) -> Iterator[str]:
    """A real Prometheus that scrapes all ten processes; its address."""
    binary = require_tool("prometheus")
    targets = [worker.metrics_address for worker in shared_cell[1].status().workers]
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "moonshard", "static_configs": [{"targets": targets}]}],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        binary,
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={address}",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield address
        finally:
            process.kill()


def query(address: str, expression: str) -> list[Any]:
    url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=5) as response:
        result: list[Any] = json.load(response)["data"]["result"]
        return result


def await_query(address: str, expression: str, wanted: float, limit_s: float = 30.0) -> None:
    """Ask until the answer is `wanted`: Prometheus offers no event to wait for."""
    deadline, seen = time.monotonic() + limit_s, "no answer"
    while time.monotonic() < deadline:
        try:
            found = query(address, expression)
            seen = found[0]["value"][1] if found else "nothing"
            if seen == f"{wanted:g}":
                return
        except OSError as error:
            seen = str(error)
        time.sleep(0.2)
    raise AssertionError(f"{expression}: wanted {wanted:g}, last saw {seen}")


def test_a_real_prometheus_sees_the_cell(client: Client, prometheus: str) -> None:
    await_query(prometheus, "count(up == 1)", 10)
    await_query(prometheus, "count(moonshard_expert_tokens_total)", 384 * len(MOE_LAYERS))
    total = sum(expert_tokens(client).values())
    greedy(client, list(range(60, 80)), 5)
    settled_tokens(client, total + 24 * TOP_K * len(MOE_LAYERS))
    await_query(prometheus, "sum(moonshard_expert_tokens_total)", total + 24 * TOP_K * len(MOE_LAYERS))
    await_query(prometheus, "count(count by (ep_rank) (moonshard_expert_rank_tokens_total))", 8)
