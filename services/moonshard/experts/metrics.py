"""What an expert shard exports."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily as Counter

from moonshard.experts.counters import LoadCounters
from moonshard.metrics import Family, ScrapeCollector
from moonshard.transport.contract import TransportStats

COMPUTE_BUCKETS = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)
BATCH_ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


class ExpertMetrics:
    """Families of one shard. The per-expert counters are read from `counters` at scrape time."""

    def __init__(
        self, registry: CollectorRegistry, model_name: str, shard: int, counters: LoadCounters, stats: TransportStats
    ) -> None:
        compute = Histogram(
            "moonshard_expert_compute_seconds",
            "Time to compute one batch of rows in one layer",
            ["model_name", "ep_rank"],
            buckets=COMPUTE_BUCKETS,
            registry=registry,
        )
        rows = Histogram(
            "moonshard_expert_batch_rows",
            "Rows computed at once in one layer",
            ["model_name", "ep_rank"],
            buckets=BATCH_ROWS_BUCKETS,
            registry=registry,
        )
        self.compute_seconds = compute.labels(model_name, str(shard))
        self.batch_rows = rows.labels(model_name, str(shard))
        registry.register(ScrapeCollector(_families(model_name, str(shard), counters, stats)))


def _families(model_name: str, shard: str, counters: LoadCounters, stats: TransportStats) -> list[Family]:
    def per_expert() -> Iterator[tuple[list[str], float]]:
        for layer, row in zip(counters.moe_layers, counters.rows_LE.tolist(), strict=True):
            for expert, value in zip(counters.experts, row, strict=True):
                yield [model_name, str(layer), str(expert)], value

    def per_layer() -> Iterator[tuple[list[str], float]]:
        for layer, value in zip(counters.moe_layers, counters.rows_LE.sum(axis=1).tolist(), strict=True):
            yield [model_name, str(layer), shard], value

    def per_direction() -> Iterator[tuple[list[str], float]]:
        for source, (received, sent) in enumerate(zip(stats.received_bytes, stats.sent_bytes, strict=True)):
            yield [model_name, shard, str(source), "dispatch"], received
            yield [model_name, shard, str(source), "combine"], sent

    return [
        Family(
            "moonshard_expert_tokens",
            "Tokens routed to each expert, counted at the shard that served them",
            Counter,
            ["model_name", "layer", "expert"],
            per_expert,
        ),
        Family(
            "moonshard_expert_rank_tokens",
            "Tokens times experts served by this shard in each layer",
            Counter,
            ["model_name", "layer", "ep_rank"],
            per_layer,
        ),
        Family(
            "moonshard_expert_link_bytes",
            "Bytes between this shard and each attention worker",
            Counter,
            ["model_name", "ep_rank", "source", "phase"],
            per_direction,
        ),
    ]
