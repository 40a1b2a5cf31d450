"""What an attention worker exports of lost, slow and wrong shards."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily as Counter

from moonshard.metrics import Buckets, Family, HistogramFamily, ScrapeCollector
from moonshard.transport.links import Recheck, Recovery

PAUSE_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
LABELS = ["model_name", "dp_rank"]


def register_failover_metrics(
    registry: CollectorRegistry, model_name: str, rank: int, recovery: Recovery, recheck: Recheck
) -> None:
    """Families of one attention worker; its pauses are counted from here on."""
    own, pauses = [model_name, str(rank)], Buckets(PAUSE_BUCKETS)
    recovery.paused = pauses.observe

    def counter(name: str, text: str, read: Callable[[], int]) -> Family:
        return Family(name, text, Counter, LABELS, lambda: [(own, read())])

    families: list[Family | HistogramFamily] = [
        counter(
            "moonshard_failover_redispatches",
            "Times that a lost shard's rows of a layer were sent again",
            lambda: recovery.num_redispatches,
        ),
        counter(
            "moonshard_failover_hedges",
            "Times that a slow shard's rows of a layer also went to a replica",
            lambda: recovery.num_hedges,
        ),
        counter(
            "moonshard_failover_hedges_refused",
            "Times that rows of a slow shard waited, because their share of all dispatches was spent",
            lambda: recovery.budget.num_refused,
        ),
        counter(
            "moonshard_failover_suspicions",
            "Times that a shard was slow or wrong",
            lambda: recovery.num_suspicions,
        ),
        counter(
            "moonshard_rechecks",
            "Rows that a second copy of a shard computed as well",
            lambda: recheck.num_done,
        ),
        counter(
            "moonshard_recheck_disagreements",
            "Those of them whose two answers differed",
            lambda: recheck.num_disagreements,
        ),
        HistogramFamily(
            "moonshard_failover_pause_seconds",
            "Time of the combines that had to ask again",
            LABELS,
            lambda: [(own, pauses.bounds, pauses.counts, pauses.total)],
        ),
    ]
    registry.register(ScrapeCollector(families))
