"""What a shard exports, by the settings of `metrics`."""

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from moonshard.config import MetricsConfig
from moonshard.experts.counters import LoadCounters
from moonshard.experts.metrics import ExpertMetrics
from moonshard.experts.windows import LoadWindows, WindowRule
from moonshard.metrics import new_registry
from moonshard.transport.contract import TransportStats

K25_LAYERS, K25_EXPERTS = tuple(range(1, 61)), range(48, 96)


def shard(
    layers: tuple[int, ...], experts: range, **settings: object
) -> tuple[CollectorRegistry, LoadCounters, LoadWindows]:
    counters = LoadCounters(layers, experts)
    windows = LoadWindows(counters, WindowRule(0.0, 0), now_s=0.0)
    registry, config = new_registry(), MetricsConfig.model_validate(settings)
    ExpertMetrics(registry, config, "m", 1, counters, windows, TransportStats.for_peers(1), experts)
    return registry, counters, windows


def k25_shard(per_expert: str) -> CollectorRegistry:
    """Of 48 experts in each of 60 layers, after 64 rows in each layer."""
    registry, counters, windows = shard(K25_LAYERS, K25_EXPERTS, per_expert=per_expert)
    draw = np.random.default_rng(1)
    for layer in K25_LAYERS:
        counters.add(layer, draw.choice(np.array(K25_EXPERTS), (64, 8)).astype(np.int32))
    windows.take(1.0)
    return registry


def exported(registry: CollectorRegistry, name: str) -> dict[tuple[str, str], float]:
    """By layer and expert or shard."""
    text = generate_latest(registry).decode()
    return {
        (sample.labels["layer"], sample.labels.get("expert") or sample.labels["ep_rank"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_counts_per_expert_are_there_once_they_may_be_told_and_those_per_shard_at_once() -> None:
    registry, counters, windows = shard((3,), range(8, 10))
    counters.add(3, np.array([[8, -1], [8, 9]], np.int32))
    assert exported(registry, "moonshard_expert_tokens_total") == {("3", "8"): 0, ("3", "9"): 0}
    assert exported(registry, "moonshard_expert_rank_tokens_total") == {("3", "1"): 3}
    assert exported(registry, "moonshard_expert_rank_active_total") == {("3", "1"): 2}
    assert exported(registry, "moonshard_expert_rank_batches_total") == {("3", "1"): 1}
    windows.take(1.0)
    assert exported(registry, "moonshard_expert_tokens_total") == {("3", "8"): 2, ("3", "9"): 1}


def test_topk_shows_the_most_loaded_and_off_none() -> None:
    registry, counters, windows = shard((3, 4), range(3), per_expert="topk", per_expert_topk=2)
    counters.add(4, np.array([[1], [1], [2]], np.int32))
    windows.take(1.0)
    assert exported(registry, "moonshard_expert_tokens_total") == {("4", "1"): 2, ("4", "2"): 1}
    registry, _, _ = shard((3, 4), range(3), per_expert="off")
    assert exported(registry, "moonshard_expert_tokens_total") == {}
    assert exported(registry, "moonshard_expert_rank_tokens_total") == {("3", "1"): 0, ("4", "1"): 0}


@pytest.mark.parametrize(("per_expert", "num_series"), [("full", 2880), ("topk", 64)])
def test_series_of_a_whole_k25_shard(per_expert: str, num_series: int) -> None:
    registry = k25_shard(per_expert)
    assert len(exported(registry, "moonshard_expert_tokens_total")) == num_series
