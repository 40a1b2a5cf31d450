"""What the router exports of where experts are; read at scrape time."""

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge

from moonshard.metrics import Family, ScrapeCollector
from moonshard.router.placer import Placer


def register_placement_metrics(registry: CollectorRegistry, model_name: str, placer: Placer) -> None:
    """Families of one router."""
    own = [model_name]
    families = [
        Family(
            "moonshard_placement_generation",
            "Number of the committed placement of experts; 0 is contiguous blocks",
            Gauge,
            ["model_name"],
            lambda: [(own, placer.placement.generation)],
        ),
        Family(
            "moonshard_placement_extra_copies",
            "Copies of experts beyond one of each, over all layers",
            Gauge,
            ["model_name"],
            lambda: [(own, placer.placement.num_extra)],
        ),
        Family(
            "moonshard_placement_rebalances",
            "Layers whose experts were placed anew",
            Counter,
            ["model_name"],
            lambda: [(own, placer.num_rebalances)],
        ),
        Family(
            "moonshard_placement_copies_loaded",
            "Copies of experts that running shards have loaded",
            Counter,
            ["model_name"],
            lambda: [(own, placer.num_loaded)],
        ),
        Family(
            "moonshard_placement_loading_seconds",
            "Time that these loads took",
            Counter,
            ["model_name"],
            lambda: [(own, placer.loading_s)],
        ),
    ]
    registry.register(ScrapeCollector(families))
