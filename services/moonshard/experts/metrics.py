"""What an expert shard exports. Names and labels as services/README.md tells; counts are read at scrape time."""

from collections.abc import Iterator, Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily as Counter

from moonshard.config import MetricsConfig
from moonshard.experts.counters import LoadCounters
from moonshard.experts.windows import LoadWindows
from moonshard.kernels.tally import SIZE_BOUNDS
from moonshard.metrics import Family, HistogramFamily, ScrapeCollector
from moonshard.transport.contract import TransportStats

COMPUTE_BUCKETS = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)
BATCH_ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
PER_LAYER = ["model_name", "layer", "ep_rank"]


class ExpertMetrics:
    """Families of one shard. `windows` decides when counts per expert may be seen; block: its experts at the start."""

    def __init__(
        self,
        registry: CollectorRegistry,
        config: MetricsConfig,
        model_name: str,
        shard: int,
        counters: LoadCounters,
        windows: LoadWindows,
        stats: TransportStats,
        block: range,
    ) -> None:
        own = [model_name, str(shard)]
        self.compute_seconds = _histogram(
            registry, own, "moonshard_expert_compute_seconds", "Time to compute one batch in one layer", COMPUTE_BUCKETS
        )
        self.batch_rows = _histogram(
            registry, own, "moonshard_expert_batch_rows", "Rows computed at once in one layer", BATCH_ROWS_BUCKETS
        )
        families = [*_layer_families(own, counters), _sizes(own, counters), _link_bytes(own, stats)]
        if config.per_expert != "off":
            top = config.per_expert_topk if config.per_expert == "topk" else None
            families.append(_per_expert(model_name, counters, windows, block, top))
        registry.register(ScrapeCollector(families))


def _histogram(
    registry: CollectorRegistry, own: list[str], name: str, documentation: str, buckets: tuple[float, ...]
) -> Histogram:
    labels = ["model_name", "ep_rank"]
    return Histogram(name, documentation, labels, buckets=buckets, registry=registry).labels(*own)


def _per_expert(model_name: str, counters: LoadCounters, windows: LoadWindows, block: range, top: int | None) -> Family:
    """Of the shard's block and of whatever else had rows here. top: only so many, those with the most rows so far."""

    # Text of every series, made once: a scrape has thousands.
    names = [(model_name, str(layer), str(expert)) for layer in counters.moe_layers for expert in counters.experts]
    in_block = [expert in block for _ in counters.moe_layers for expert in counters.experts]

    def samples() -> Iterator[tuple[Sequence[str], float]]:
        rows = windows.told_LE.reshape(-1)
        shown = range(len(rows)) if top is None else np.argsort(-rows, kind="stable")[:top].tolist()
        values = rows.tolist()
        for at in shown:
            if values[at] or in_block[at]:
                yield names[at], values[at]

    text = "Rows routed to each expert, counted at the shard that served them and told window by window"
    return Family("moonshard_expert_tokens", text, Counter, ["model_name", "layer", "expert"], samples)


def _layer_families(own: list[str], counters: LoadCounters) -> list[Family | HistogramFamily]:
    tally = counters.tally
    model_name, shard = own

    def per_layer(values: "np.typing.NDArray[np.int64]") -> Iterator[tuple[list[str], float]]:
        for layer, value in zip(counters.moe_layers, values.tolist(), strict=True):
            yield [model_name, str(layer), shard], value

    return [
        Family(
            "moonshard_expert_rank_tokens",
            "Rows times experts served by this shard in each layer",
            Counter,
            PER_LAYER,
            lambda: per_layer(tally.rows_LE.sum(axis=1)),
        ),
        Family(
            "moonshard_expert_rank_active",
            "Experts with at least one row, summed over the batches of a layer",
            Counter,
            PER_LAYER,
            lambda: per_layer(tally.active_L),
        ),
        Family(
            "moonshard_expert_rank_batches",
            "Batches computed in each layer",
            Counter,
            PER_LAYER,
            lambda: per_layer(tally.batches_L),
        ),
    ]


def _sizes(own: list[str], counters: LoadCounters) -> HistogramFamily:
    tally = counters.tally
    return HistogramFamily(
        "moonshard_expert_batch_tokens",
        "Rows of one expert in one batch, of the experts that had any",
        ["model_name", "ep_rank"],
        lambda: [(own, SIZE_BOUNDS, tally.sizes_B.tolist(), float(tally.rows_LE.sum()))],
    )


def _link_bytes(own: list[str], stats: TransportStats) -> Family:
    model_name, shard = own

    def samples() -> Iterator[tuple[list[str], float]]:
        for source, (received, sent) in enumerate(zip(stats.received_bytes, stats.sent_bytes, strict=True)):
            yield [model_name, "expert", str(source), shard, "dispatch"], received
            yield [model_name, "expert", str(source), shard, "combine"], sent

    labels = ["model_name", "role", "dp_rank", "ep_rank", "phase"]
    return Family("moonshard_a2a_bytes", "Bytes of each link, as this end counts them", Counter, labels, samples)
