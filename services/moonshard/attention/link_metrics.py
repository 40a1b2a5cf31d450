"""What an attention worker exports of the data plane: bytes, waits and times of dispatch and combine."""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily as Counter

from moonshard.metrics import Buckets, Family, HistogramFamily, ScrapeCollector
from moonshard.transport.contract import TransportStats

SECONDS_BUCKETS = (
    0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip


class PhaseTimes:
    """Seconds of each call, one writer."""

    __slots__ = ("combine", "dispatch")

    def __init__(self) -> None:
        self.dispatch, self.combine = Buckets(SECONDS_BUCKETS), Buckets(SECONDS_BUCKETS)


def register_link_metrics(
    registry: CollectorRegistry, model_name: str, rank: int, stats: TransportStats, times: PhaseTimes
) -> None:
    """Families of one attention worker."""
    own = [model_name, str(rank)]

    def seconds() -> Iterator[tuple[list[str], Sequence[float], Sequence[int], float]]:
        for phase, buckets in (("dispatch", times.dispatch), ("combine", times.combine)):
            yield [*own, phase], buckets.bounds, buckets.counts, buckets.total

    def link_bytes() -> Iterator[tuple[list[str], float]]:
        for shard, (sent, received) in enumerate(zip(stats.sent_bytes, stats.received_bytes, strict=True)):
            yield [model_name, "attention", str(rank), str(shard), "dispatch"], sent
            yield [model_name, "attention", str(rank), str(shard), "combine"], received

    def waits() -> Iterator[tuple[list[str], float]]:
        return (([*own, str(shard)], value) for shard, value in enumerate(stats.wait_s))

    registry.register(
        ScrapeCollector(
            [
                HistogramFamily(
                    "moonshard_a2a_seconds",
                    "Time of one layer's dispatch, and of its combine: what the shared expert did not hide",
                    ["model_name", "dp_rank", "phase"],
                    seconds,
                ),
                Family(
                    "moonshard_a2a_bytes",
                    "Bytes of each link, as this end counts them",
                    Counter,
                    ["model_name", "role", "dp_rank", "ep_rank", "phase"],
                    link_bytes,
                ),
                Family(
                    "moonshard_a2a_wait_seconds",
                    "Time that combine waited until each shard had answered",
                    Counter,
                    ["model_name", "dp_rank", "ep_rank"],
                    waits,
                ),
            ]
        )
    )
