"""Routing traces reach an OTLP collector of the test's own, over real gRPC."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from moonshard.config import CellConfig
from moonshard.errors import ConfigError
from moonshard.router.spans import Spans
from moonshard.router.traces import Trace
from moonshard.v1 import control_pb2 as pb
from tests.unit.router.router_peers import LIMIT_S, collect, generate_request, ready_cell, run, small_config
from tests.unit.router.test_traces import step


class Collector(TraceServiceServicer):  # type: ignore[misc]  # its stubs have no types
    def __init__(self) -> None:
        self.spans: asyncio.Queue[Any] = asyncio.Queue()

    async def Export(self, request: Any, context: Any) -> Any:
        for group in request.resource_spans:
            for scope in group.scope_spans:
                for span in scope.spans:
                    self.spans.put_nowait(span)
        return otlp.ExportTraceServiceResponse()

    async def next(self) -> tuple[str, dict[str, Any], Any]:
        """Name, attributes and the span itself."""
        async with asyncio.timeout(LIMIT_S):
            span = await self.spans.get()
        return span.name, {it.key: _value(it.value) for it in span.attributes}, span


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(it) for it in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def test_a_traced_request_leaves_as_spans(tmp_path: Path) -> None:
    async def test() -> None:
        collector, server = Collector(), grpc.aio.server()
        add_TraceServiceServicer_to_server(collector, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        values = small_config(tmp_path).model_dump()
        values["metrics"] |= {"otlp_endpoint": f"http://127.0.0.1:{port}"}
        async with ready_cell(CellConfig.model_validate(values)) as peers:
            call = asyncio.ensure_future(
                collect(peers.inference.Generate(generate_request(request_id="r"), metadata=(("x-trace", "1"),)))
            )
            worker = peers.attention[0]
            (sequence,) = (await worker.next("admit")).sequences
            told = step(sequence.request_id, 3, 0.5)
            told.ended_at_s = 1000.5
            await worker.send(routing=pb.RoutingSteps(steps=[told]))
            await worker.finish(sequence.request_id)
            await call
        # The router is closed: it has sent what waited.
        found = {name: (attributes, span) for name, attributes, span in [await collector.next() for _ in range(2)]}
        attributes, span = found["moonshard.sequence"]
        assert attributes["moonshard.request_id"] == "r"
        assert attributes["moonshard.num_last"] == [0, 2]
        assert (span.start_time_unix_nano, span.end_time_unix_nano) == (1_000_000_000_000, 1_000_500_000_000)
        attributes, iteration = found["moonshard.iteration"]
        assert iteration.parent_span_id == span.span_id
        assert attributes["moonshard.layers"] == [1, 2]
        assert attributes["moonshard.last_shards"] == [1, 1]
        assert attributes["moonshard.experts"] == ["3 1", "3 1"]
        assert attributes["moonshard.position"] == 3
        await server.stop(0)

    run(test)


def test_without_the_packages_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"metrics.otlp_endpoint: needs the extra otel"):
        Spans.to_collector("http://127.0.0.1:1", "m")


def test_what_never_ran_has_no_spans() -> None:
    class Nobody:
        def start_span(self, *_: Any, **__: Any) -> None:
            raise AssertionError("a span of nothing")

    Spans(Nobody(), lambda: None).tell(Trace("r", 0))


def test_an_endpoint_is_a_url() -> None:
    with pytest.raises(ConfigError, match="otlp_endpoint"):
        CellConfig.build({"checkpoint": "/c", "metrics": {"otlp_endpoint": "collector:4317"}})
