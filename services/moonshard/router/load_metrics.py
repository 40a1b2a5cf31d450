"""What the router exports of the shards' load and of coverage; read at scrape time, in the scrape's thread."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily as Gauge

from moonshard.metrics import Family, ScrapeCollector
from moonshard.router.load import LoadBook
from moonshard.router.membership import Membership

BALANCE_WINDOW_S = 60.0


def register_load_metrics(
    registry: CollectorRegistry,
    model_name: str,
    book: LoadBook,
    membership: Callable[[], Membership],
    clock: Callable[[], float],
) -> None:
    """Families of one router."""
    families = [
        Family(
            "moonshard_expert_balancedness_ratio",
            "Mean by maximum of the shards' rows in each layer over the last minute's windows; 1 is perfect",
            Gauge,
            ["model_name", "layer"],
            lambda: (
                ([model_name, str(layer)], value)
                for layer, value in book.balancedness(BALANCE_WINDOW_S, clock()).items()
            ),
        ),
        Family(
            "moonshard_experts_covered",
            "Logical experts with at least one live copy",
            Gauge,
            ["model_name"],
            lambda: [([model_name], membership().coverage.num_covered)],
        ),
        Family(
            "moonshard_experts_logical",
            "Logical experts of the model",
            Gauge,
            ["model_name"],
            lambda: [([model_name], membership().coverage.num_experts)],
        ),
        Family(
            "moonshard_worker_resident_bytes",
            "Memory of each worker process, as its last heartbeat told",
            Gauge,
            ["model_name", "worker"],
            lambda: (
                ([model_name, str(worker.id)], worker.vitals.resident_bytes) for worker in membership().workers.values()
            ),
        ),
    ]
    registry.register(ScrapeCollector(families))
