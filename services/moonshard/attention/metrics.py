"""What an attention worker exports."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge

from moonshard.attention.engine import Engine
from moonshard.metrics import Family, Kind, ScrapeCollector

STEP_TOKENS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
STEP_SECONDS_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class AttentionMetrics:
    """Families of one attention worker; all but the histograms are read from the engine at scrape time."""

    def __init__(self, registry: CollectorRegistry, model_name: str, rank: int, engine: Engine) -> None:
        labels = ["model_name", "dp_rank"]
        tokens = Histogram(
            "moonshard_step_tokens", "Tokens per iteration", labels, buckets=STEP_TOKENS_BUCKETS, registry=registry
        )
        seconds = Histogram(
            "moonshard_step_seconds", "Time per iteration", labels, buckets=STEP_SECONDS_BUCKETS, registry=registry
        )
        self.step_tokens = tokens.labels(model_name, str(rank))
        self.step_seconds = seconds.labels(model_name, str(rank))
        registry.register(ScrapeCollector(_engine_families([model_name, str(rank)], engine)))


def _engine_families(own: list[str], engine: Engine) -> list[Family]:
    labels = ["model_name", "dp_rank"]
    scheduler, limits = engine.scheduler, engine.scheduler.limits
    tables, pool = scheduler.tables, scheduler.tables.pool

    def one(kind: Kind, name: str, text: str, read: Callable[[], float]) -> Family:
        return Family(name, text, kind, labels, lambda: [(own, read())])

    return [
        one(Counter, "moonshard_engine_steps", "Iterations run", lambda: engine.num_steps),
        one(Counter, "moonshard_engine_prompt_tokens", "Prompt tokens run", lambda: engine.num_prompt_tokens),
        one(
            Counter,
            "moonshard_engine_generation_tokens",
            "Tokens sampled",
            lambda: engine.num_generated_tokens,
        ),
        one(
            Counter,
            "moonshard_degraded_tokens",
            "Tokens run without all of their experts, which only timeouts.degraded_after_s allows",
            lambda: engine.num_degraded_tokens,
        ),
        one(Gauge, "moonshard_engine_requests_running", "Running", lambda: scheduler.num_running),
        one(
            Counter,
            "moonshard_preemptions",
            "Sequences that gave their KV blocks up to older ones",
            lambda: scheduler.num_preempted,
        ),
        one(
            Counter,
            "moonshard_prefix_cache_queries_tokens",
            "Tokens looked for in the prefix cache",
            lambda: tables.num_queried,
        ),
        one(
            Counter,
            "moonshard_prefix_cache_hits_tokens",
            "Tokens found in the prefix cache",
            lambda: tables.num_hit,
        ),
        one(
            Gauge,
            "moonshard_prefix_cache_blocks",
            "KV blocks whose content later prompts can share",
            lambda: pool.num_known,
        ),
        one(
            Gauge,
            "moonshard_kv_cache_usage_ratio",
            "Share of KV blocks that sequences use, 0 to 1; cached blocks that nobody uses are free",
            lambda: 1 - pool.num_free / pool.num_blocks,
        ),
        Family(
            "moonshard_cache_config_info",
            "Shape of the KV cache; the labels' names are those that gateways know",
            Gauge,
            [*labels, "block_size", "num_gpu_blocks"],
            lambda: [([*own, str(limits.block_size), str(limits.num_blocks)], 1.0)],
        ),
    ]
