"""Routing traces as OpenTelemetry spans: one for each traced sequence, with one for each iteration that was kept.

What is true of every layer are arrays of equal length: moonshard.layers, .last_shards (-1: nothing tells),
.last_waits_s and .experts ("3 17 ..."). The packages are an extra, `otel`, and are imported where an endpoint is set.
"""

from collections.abc import Callable
from typing import Any

from moonshard.errors import ConfigError
from moonshard.router.traces import Trace, last_shard
from moonshard.v1 import control_pb2 as pb

FIELD = "metrics.otlp_endpoint"
CLOSE_MS = 3000


class Spans:
    """tracer: OpenTelemetry's. close: sends what waits, and ends."""

    def __init__(self, tracer: Any, close: Callable[[], None]) -> None:
        self._tracer = tracer
        self.close = close

    @classmethod
    def to_collector(cls, endpoint: str, service_name: str) -> "Spans":
        """endpoint: URL of an OTLP gRPC receiver; http:// is plain text. Raises ConfigError without the packages.

        A collector that is away costs its spans, nothing else: they are sent by a thread, from a bounded queue.
        """
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(FIELD, f"needs the extra otel (pip install 'moonshard[otel]'): {error}") from None
        provider = TracerProvider(resource=Resource({"service.name": service_name}), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
        provider.add_span_processor(BatchSpanProcessor(exporter))

        def close() -> None:
            provider.force_flush(CLOSE_MS)
            provider.shutdown()

        return cls(provider.get_tracer("moonshard.router"), close)

    def tell(self, trace: Trace) -> None:
        """A sequence that is over; one that never ran has nothing to tell."""
        if not trace.steps:
            return
        first, last = trace.steps[0], max(trace.steps, key=lambda step: step.ended_at_s)
        span = self._tracer.start_span("moonshard.sequence", start_time=_started_ns(first), attributes=_whole(trace))
        context = _within(span)
        for step in trace.steps:
            own = self._tracer.start_span(
                "moonshard.iteration", context, start_time=_started_ns(step), attributes=_of_step(step)
            )
            own.end(_ns(step.ended_at_s))
        span.end(_ns(last.ended_at_s))


def _within(span: Any) -> Any:
    from opentelemetry.trace import set_span_in_context

    return set_span_in_context(span)


def _whole(trace: Trace) -> dict[str, Any]:
    return {
        "moonshard.request_id": trace.request_id,
        "moonshard.choice": trace.choice,
        "moonshard.dp_rank": trace.rank,
        "moonshard.num_iterations": trace.num_steps,
        "moonshard.seconds": trace.seconds,
        "moonshard.num_last": list(trace.num_last),
        "moonshard.waits_s": list(trace.wait_s),
    }


def _of_step(step: pb.RoutingStep) -> dict[str, Any]:
    last = [last_shard(route) for route in step.layers]
    return {
        "moonshard.position": step.position,
        "moonshard.num_tokens": step.num_tokens,
        "moonshard.num_rows": step.num_rows,
        "moonshard.layers": [route.layer for route in step.layers],
        "moonshard.last_shards": [-1 if shard is None else shard for shard in last],
        "moonshard.last_waits_s": [max(route.wait_s, default=0.0) for route in step.layers],
        "moonshard.combines_s": [route.combine_s for route in step.layers],
        "moonshard.experts": [" ".join(map(str, route.experts)) for route in step.layers],
    }


def _started_ns(step: pb.RoutingStep) -> int:
    return _ns(step.ended_at_s - step.seconds)


def _ns(unix_s: float) -> int:
    return int(unix_s * 1e9)
