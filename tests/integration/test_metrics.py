"""What the processes of a running cell export, read by real Prometheus tools."""

import subprocess
import time
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from moonshard.v1 import control_pb2
from moonshard_cluster.client import Client
from tests.integration.cells import greedy
from tests.integration.prometheus_server import await_query, scrape
from tests.tools import require_tool

PROMPT_TOKENS, NEW_TOKENS, TOP_K, MOE_LAYERS = 9, 4, 8, (1, 2)


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def shards_samples(client: Client) -> list[tuple[str, dict[str, str], float]]:
    """(name, labels, value) of all shards."""
    return [
        (name, dict(labels), value)
        for worker in client.status().workers
        if worker.role == control_pb2.ROLE_EXPERT
        for (name, labels), value in samples(scrape(worker.metrics_address)).items()
    ]


def expert_tokens(client: Client, limit_s: float = 10.0) -> dict[tuple[int, int], float]:
    """(layer, expert) -> tokens, over all shards.

    Once the shards have told of all they served: they tell a moment later, and offer no event.
    """
    deadline = time.monotonic() + limit_s
    while True:
        found, served = {}, 0.0
        for name, labels, value in shards_samples(client):
            if name == "moonshard_expert_tokens_total":
                key = int(labels["layer"]), int(labels["expert"])
                assert key not in found, f"two shards export {key}"
                found[key] = value
            elif name == "moonshard_expert_rank_tokens_total":
                served += value
        if sum(found.values()) == served:
            return found
        assert time.monotonic() < deadline, f"{sum(found.values())} of {served} are told"
        time.sleep(0.1)


def test_every_expert_of_every_layer_is_exported_once_and_counts_its_tokens(client: Client) -> None:
    before = expert_tokens(client)
    assert sorted(before) == [(layer, expert) for layer in MOE_LAYERS for expert in range(384)]
    greedy(client, list(range(40, 40 + PROMPT_TOKENS)), NEW_TOKENS)
    rows = PROMPT_TOKENS + NEW_TOKENS - 1  # the last token is never run
    after = expert_tokens(client)
    for layer in MOE_LAYERS:
        grown = [after[layer, expert] - before[layer, expert] for expert in range(384)]
        assert sum(grown) == rows * TOP_K
        assert max(grown) <= rows
        assert sum(g > 0 for g in grown) > TOP_K


def test_every_process_lives_and_is_ready(client: Client) -> None:
    for worker in client.status().workers:
        for probe in ("livez", "readyz"):
            with urllib.request.urlopen(f"http://{worker.metrics_address}/{probe}", timeout=10) as response:
                assert (response.status, response.read()) == (200, b"ok\n")


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


def test_a_real_prometheus_sees_the_cell(client: Client, prometheus: str) -> None:
    await_query(prometheus, "count(up == 1)", 10)
    await_query(prometheus, "count(moonshard_expert_tokens_total)", 384 * len(MOE_LAYERS))
    total = sum(expert_tokens(client).values())
    greedy(client, list(range(60, 80)), 5)
    await_query(prometheus, "sum(moonshard_expert_tokens_total)", total + 24 * TOP_K * len(MOE_LAYERS))
    await_query(prometheus, "count(count by (ep_rank) (moonshard_expert_rank_tokens_total))", 8)
