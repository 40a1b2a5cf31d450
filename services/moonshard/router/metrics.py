"""Every metric of the router. Names and buckets follow what vLLM and SGLang users know (services/README.md)."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from moonshard.errors import DuplicateRequest, MoonshardError, Overloaded, RequestError
from moonshard.metrics import ITL_BUCKETS, REQUEST_BUCKETS, TTFT_BUCKETS

ABORT, ERROR = "abort", "error"
FINISH_REASONS = ("stop", "length", ABORT, ERROR)
REJECTIONS = ("invalid", "duplicate", "queue_full", "unavailable")
MODEL = "model_name"


class RouterMetrics:
    """Families of one router on one registry; counters exist at 0 before their first event."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._model = model_name
        self._registry = registry
        self.waiting = self._gauge("moonshard_requests_waiting", "Requests in the router's queue.")
        self.running = self._gauge("moonshard_requests_running", "Requests in attention workers' batches.")
        self.prompt_tokens = self._counter("moonshard_prompt_tokens", "Prompt tokens of admitted requests.")
        self.generation_tokens = self._counter("moonshard_generation_tokens", "Tokens generated.")
        self.time_to_first_token = self._histogram(
            "moonshard_time_to_first_token_seconds", "From a request's arrival to its first token.", TTFT_BUCKETS
        )
        self.inter_token_latency = self._histogram(
            "moonshard_inter_token_latency_seconds", "Between two tokens of a request.", ITL_BUCKETS
        )
        self.e2e_latency = self._histogram(
            "moonshard_e2e_request_latency_seconds", "From arrival to the last token.", REQUEST_BUCKETS
        )
        self.queue_time = self._histogram(
            "moonshard_request_queue_time_seconds", "From arrival to admission by an attention worker.", TTFT_BUCKETS
        )
        self._requests = self._labelled("moonshard_requests", "Requests ended.", "finish_reason", FINISH_REASONS)
        self._rejected = self._labelled(
            "moonshard_router_rejected", "Requests refused before they were queued.", "reason", REJECTIONS
        )

    def ended(self, finish_reason: str) -> None:
        self._requests.labels(self._model, finish_reason).inc()

    def rejected(self, error: MoonshardError) -> None:
        self._rejected.labels(self._model, rejection_reason(error)).inc()

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


def rejection_reason(error: MoonshardError) -> str:
    if isinstance(error, DuplicateRequest):
        return "duplicate"
    if isinstance(error, RequestError):
        return "invalid"
    return "queue_full" if isinstance(error, Overloaded) else "unavailable"
