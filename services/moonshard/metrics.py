"""Prometheus plumbing that every process shares: a registry of its own, an HTTP server, buckets, array collectors.

The same server answers a process's probes, /livez and /readyz.

Names, labels and units follow `moonshard_...` conventions told in services/README.md; each process declares its
families in its own package.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from threading import Thread
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from moonshard.errors import ConfigError
from moonshard.exposition import metrics_app

# Seconds. TTFT and request buckets as vLLM has them, inter-token as SGLang (finer where decode lives).
TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
ITL_BUCKETS = (
    0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1,
    0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0,
)  # fmt: skip
REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
LENGTH_BUCKETS = tuple(float(2**power) for power in range(19))  # tokens: 1 to 256 Ki
BATCH_BUCKETS = tuple(float(2**power) for power in range(13))  # sequences: 1 to 4096


def new_registry() -> CollectorRegistry:
    """A registry with the process's own figures. `_created` series are off: they double the exposition's size."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


@dataclass(frozen=True, slots=True)
class RunningMetrics:
    """A /metrics server in a thread of its own."""

    host: str
    port: int
    _server: Any
    _thread: Thread

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


Probe = Callable[[], str]
"""What is wrong, in words; empty when nothing is. Called in a thread of the server's."""


def serve_metrics(
    registry: CollectorRegistry, host: str, port: int, probes: Mapping[str, Probe] | None = None
) -> RunningMetrics:
    """Serve `registry` at http://host:port/metrics and `probes` at their paths, 503 when something is wrong.

    Port 0 takes a free one. Raises ConfigError when it is taken.
    """
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise ConfigError("metrics.base_port", f"cannot serve metrics on {host}:{port}: {error.strerror}") from None
    server.set_app(_with_probes(metrics_app(registry), probes or {}))
    return RunningMetrics(host, server.server_port, server, thread)


def _with_probes(metrics: Any, probes: Mapping[str, Probe]) -> Any:
    """A WSGI application."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        probe = probes.get(environ["PATH_INFO"])
        if probe is None:
            return metrics(environ, start_response)
        problem = probe()
        status = "503 Service Unavailable" if problem else "200 OK"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{problem or 'ok'}\n".encode()]

    return answer


Kind = type[CounterMetricFamily] | type[GaugeMetricFamily]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family whose samples are read at scrape time.

    samples: called at each scrape; yields (label values, value). Counter names come without `_total`.
    """

    name: str
    documentation: str
    kind: Kind
    labels: Sequence[str]
    samples: Callable[[], Iterable[tuple[Sequence[str], float]]]


class Buckets:
    """Counts of a histogram with one writer and no lock. bounds: upper ones, ascending; the last class is open."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(frozen=True, slots=True)
class HistogramFamily:
    """As Family. samples: yields (label values, bounds, counts by class, sum of what was counted)."""

    name: str
    documentation: str
    labels: Sequence[str]
    samples: Callable[[], Iterable[tuple[Sequence[str], Sequence[float], Sequence[int], float]]]


class ScrapeCollector(Collector):
    """Families over values that the hot path keeps anyway: it pays nothing, the scrape reads."""

    def __init__(self, families: Sequence[Family | HistogramFamily]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            yield _collect_histogram(family) if isinstance(family, HistogramFamily) else _collect(family)

    def describe(self) -> Iterator[Metric]:
        for family in self._families:
            kind = HistogramMetricFamily if isinstance(family, HistogramFamily) else family.kind
            yield kind(family.name, family.documentation, labels=family.labels)


def _collect(family: Family) -> Metric:
    metric = family.kind(family.name, family.documentation, labels=family.labels)
    name = family.name + ("_total" if family.kind is CounterMetricFamily else "")
    # As add_metric does, without its questions to each of thousands.
    metric.samples += [Sample(name, dict(zip(family.labels, it, strict=True)), value) for it, value in family.samples()]
    return metric


def _collect_histogram(family: HistogramFamily) -> Metric:
    metric = HistogramMetricFamily(family.name, family.documentation, labels=family.labels)
    for labels, bounds, counts, total in family.samples():
        names = [*map(floatToGoString, bounds), "+Inf"]
        metric.add_metric(list(labels), list(zip(names, accumulate(counts), strict=True)), total)
    return metric
