"""The same bytes as prometheus_client writes, of every kind of metric, however often it is asked."""

import gzip
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Summary, generate_latest

from moonshard.exposition import Exposition, metrics_app
from moonshard.metrics import new_registry
from tests.unit.experts.test_expert_metrics import k25_shard


@pytest.fixture
def registry() -> CollectorRegistry:
    found = new_registry()
    rows = Counter("rows", 'Of "this" and\nthat \\ there', ["layer", "expert"], registry=found)
    rows.labels("1", "2").inc(3)
    rows.labels('a"b', "back\\slash\nline").inc(12345678)
    Counter("plain", "Without labels", registry=found).inc()
    Gauge("level", "May be anything", ["of"], registry=found).labels("x").set(float("nan"))
    Histogram("wait_seconds", "Buckets", ["rank"], buckets=(0.1, 1), registry=found).labels("0").observe(0.5)
    Summary("size", "Not of the plain kinds", registry=found).observe(2)
    Info("build", "Nor this", registry=found).info({"version": "1"})
    Gauge("idle", "Without samples", ["of"], registry=found)
    return found


def without_process(text: bytes) -> list[str]:
    """The process's own figures change from moment to moment."""
    return [line for line in text.decode().splitlines() if "process_" not in line]


def test_the_same_bytes(registry: CollectorRegistry) -> None:
    exposition = Exposition(registry)
    for _ in range(2):
        assert without_process(exposition.text()) == without_process(generate_latest(registry))


def test_the_same_bytes_of_a_shard() -> None:
    shard = k25_shard("full")
    assert without_process(Exposition(shard).text()) == without_process(generate_latest(shard))


def ask(registry: CollectorRegistry, **environ: str) -> tuple[str, dict[str, str], bytes]:
    answered: list[Any] = []
    request = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", **environ}
    [body] = metrics_app(registry)(request, lambda *it: answered.extend(it))
    return answered[0], dict(answered[1]), body


def test_over_http(registry: CollectorRegistry) -> None:
    status, headers, body = ask(registry)
    assert (status, headers) == ("200 OK", {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
    assert without_process(body) == without_process(generate_latest(registry))
    status, headers, packed = ask(registry, HTTP_ACCEPT_ENCODING="gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert without_process(gzip.decompress(packed)) == without_process(body)
    _, _, some = ask(registry, QUERY_STRING="name[]=plain_total")
    assert [line for line in some.decode().splitlines() if line[0] != "#"] == ["plain_total 1.0"]
    assert ask(registry, REQUEST_METHOD="POST")[0] == "405 Method Not Allowed"
