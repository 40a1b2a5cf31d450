"""Every metric of the router. Names and buckets follow what vLLM and SGLang users know (services/README.md)."""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily

from moonshard.errors import (
    DeadlineTooClose,
    DuplicateRequest,
    MoonshardError,
    Overloaded,
    RequestError,
    Unauthenticated,
)
from moonshard.metrics import (
    BATCH_BUCKETS,
    ITL_BUCKETS,
    LENGTH_BUCKETS,
    REQUEST_BUCKETS,
    TTFT_BUCKETS,
    Family,
    ScrapeCollector,
)
from moonshard.router.flight import Flight
from moonshard.router.requests import Finish

ABORT, ERROR = "abort", "error"
FINISH_REASONS = ("stop", "length", ABORT, ERROR)
REJECTIONS = ("invalid", "duplicate", "unauthenticated", "queue_full", "deadline", "unavailable")
MODEL = "model_name"
OTHER_TENANTS = "other"


class RouterMetrics:
    """Families of one router on one registry; counters exist at 0 before their first event."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._model = model_name
        self._registry = registry
        self._waiting = self._gauge("moonshard_requests_waiting", "Sequences in the router's queue.")
        self._running = self._gauge("moonshard_requests_running", "Sequences in attention workers' batches.")
        self._prompt_tokens = self._counter("moonshard_prompt_tokens", "Prompt tokens of admitted requests.")
        self._generation_tokens = self._counter("moonshard_generation_tokens", "Tokens generated.")
        self._cached_tokens = self._counter(
            "moonshard_router_cached_prompt_tokens", "Prompt tokens that workers found in their prefix caches."
        )
        self.preemptions = self._counter(
            "moonshard_router_readmissions", "Sequences that a worker gave back and that were queued again."
        )
        self.batch_size = self._histogram(
            "moonshard_router_batch_size", "Sequences that had news in one iteration of a worker.", BATCH_BUCKETS
        )
        self._time_to_first_token = self._histogram(
            "moonshard_time_to_first_token_seconds", "From a request's arrival to its first token.", TTFT_BUCKETS
        )
        self._inter_token_latency = self._histogram(
            "moonshard_inter_token_latency_seconds", "Between two tokens of a request.", ITL_BUCKETS
        )
        self._time_per_token = self._histogram(
            "moonshard_request_time_per_output_token_seconds", "A request's mean time between tokens.", ITL_BUCKETS
        )
        self._e2e_latency = self._histogram(
            "moonshard_e2e_request_latency_seconds", "From arrival to the last token.", REQUEST_BUCKETS
        )
        self._queue_time = self._histogram(
            "moonshard_request_queue_time_seconds", "From arrival to admission by an attention worker.", TTFT_BUCKETS
        )
        self._prefill_time = self._histogram(
            "moonshard_request_prefill_time_seconds", "From admission to the first token.", TTFT_BUCKETS
        )
        self._decode_time = self._histogram(
            "moonshard_request_decode_time_seconds", "From the first token to the last.", REQUEST_BUCKETS
        )
        self._prompt_length = self._histogram(
            "moonshard_request_prompt_tokens", "Prompt tokens of a finished request.", LENGTH_BUCKETS
        )
        self._generation_length = self._histogram(
            "moonshard_request_generation_tokens", "Tokens generated for a finished request.", LENGTH_BUCKETS
        )
        self._requests = self._labelled("moonshard_requests", "Requests ended.", "finish_reason", FINISH_REASONS)
        self._rejected = self._labelled(
            "moonshard_router_rejected", "Requests refused before they were queued.", "reason", REJECTIONS
        )

    def show(self, num_waiting: int, num_running: int) -> None:
        self._waiting.set(num_waiting)
        self._running.set(num_running)

    def admitted(self, flight: Flight) -> None:
        self._queue_time.observe(flight.admitted_s - flight.request.arrival_s)
        self._prompt_tokens.inc(len(flight.request.prompt_token_ids))

    def first_token(self, flight: Flight, now_s: float) -> None:
        self._time_to_first_token.observe(now_s - flight.request.arrival_s)
        self._cached_tokens.inc(flight.num_cached_tokens)

    def tokens(self, flight: Flight, num_tokens: int, now_s: float) -> None:
        """New tokens of a flight that does not count them yet."""
        num_gaps = num_tokens if flight.num_generated else num_tokens - 1
        for _ in range(num_gaps):
            self._inter_token_latency.observe((now_s - flight.last_token_s) / num_gaps)
        self._generation_tokens.inc(num_tokens)

    def finished(self, flight: Flight, finish: Finish, now_s: float) -> None:
        self._e2e_latency.observe(now_s - flight.request.arrival_s)
        self._prefill_time.observe(finish.timings.prefill_s)
        self._decode_time.observe(finish.timings.decode_s)
        self._prompt_length.observe(finish.num_prompt_tokens)
        self._generation_length.observe(finish.num_completion_tokens)
        if finish.num_completion_tokens > 1:
            self._time_per_token.observe(finish.timings.decode_s / (finish.num_completion_tokens - 1))

    def ended(self, finish_reason: str) -> None:
        self._requests.labels(self._model, finish_reason).inc()

    def rejected(self, error: MoonshardError) -> None:
        self._rejected.labels(self._model, rejection_reason(error)).inc()

    def watch_tenants(self, tenants: Sequence[str], num_waiting: Callable[[str | None], int]) -> None:
        """Who waits, by tenants that the operator named and all others together: callers must not make series.

        num_waiting: of a tenant, or of everybody when None.
        """

        def samples() -> Iterable[tuple[Sequence[str], float]]:
            counts = {tenant: num_waiting(tenant) for tenant in tenants}
            for tenant, count in counts.items():
                yield (self._model, tenant), count
            yield (self._model, OTHER_TENANTS), max(num_waiting(None) - sum(counts.values()), 0)

        family = Family(
            "moonshard_router_tenant_waiting",
            "Sequences in the queue, by tenant.",
            GaugeMetricFamily,
            (MODEL, "tenant"),
            samples,
        )
        self._registry.register(ScrapeCollector([family]))

    def _gauge(self, name: str, documentation: str) -> Gauge:
        return Gauge(name, documentation, [MODEL], registry=self._registry).labels(self._model)

    def _counter(self, name: str, documentation: str) -> Counter:
        return Counter(name, documentation, [MODEL], registry=self._registry).labels(self._model)

    def _histogram(self, name: str, documentation: str, buckets: Iterable[float]) -> Histogram:
        family = Histogram(name, documentation, [MODEL], registry=self._registry, buckets=tuple(buckets))
        return family.labels(self._model)

    def _labelled(self, name: str, documentation: str, label: str, values: Iterable[str]) -> Counter:
        family = Counter(name, documentation, [MODEL, label], registry=self._registry)
        for value in values:
            family.labels(self._model, value)
        return family


_REASONS: tuple[tuple[type[MoonshardError], str], ...] = (
    (DuplicateRequest, "duplicate"),
    (RequestError, "invalid"),
    (Unauthenticated, "unauthenticated"),
    (DeadlineTooClose, "deadline"),
    (Overloaded, "queue_full"),
)


def rejection_reason(error: MoonshardError) -> str:
    """The first class that fits; anything else is that the cell cannot serve now."""
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), "unavailable")
