"""Direct links: merging, order, handshake, bad peers, dead peers, descriptors."""

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moonshard.errors import ConfigError, PeerLost, ProtocolMismatch, TransportTimeout
from moonshard.transport import wire
from moonshard.transport.contract import ExpertBatch, WireSpec
from moonshard.transport.links import LinkDispatcher, LinkEndpoint, handshake
from tests.contract.transport_cluster import Worker, compute, expected, make_rows, make_spec, same_bits

pytestmark = pytest.mark.usefixtures("engine")

ONE_SHARD = {"num_shards": 1, "num_experts": 12}


def answer(endpoint: LinkEndpoint, batch: ExpertBatch) -> None:
    y_RD = compute(endpoint.shard, batch.layer, batch.x_RD, batch.topk_ids_RK, batch.topk_weights_RK)
    endpoint.reply(batch, y_RD)


def pump_until(endpoint: LinkEndpoint, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Let the endpoint serve its links until something is so."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        assert endpoint.receive(0.01) is None


def connect(endpoint: LinkEndpoint, spec: WireSpec, source: int = 0, timeout_s: float = 5.0) -> LinkDispatcher:
    """A dispatcher linked to one endpoint that nobody else serves."""
    worker = Worker(lambda: LinkDispatcher(spec, source, [endpoint.address], timeout_s))
    pump_until(endpoint, lambda: not worker.is_alive())
    dispatcher: LinkDispatcher = worker.result()
    return dispatcher


def receive(endpoint: LinkEndpoint) -> ExpertBatch:
    batch = endpoint.receive(5.0)
    assert batch is not None
    return batch


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[LinkEndpoint]:
    with closing(LinkEndpoint(make_spec(**ONE_SHARD), 0, f"unix:{tmp_path}/0.sock", max_rows=50, timeout_s=0.5)) as it:
        yield it


def test_a_shard_merges_what_waits_for_the_same_layer(endpoint: LinkEndpoint) -> None:
    spec = endpoint.spec
    first, second = connect(endpoint, spec, 0), connect(endpoint, spec, 1)
    with closing(first), closing(second):
        rows = [make_rows(spec, 3, seed=1), make_rows(spec, 2, seed=2), make_rows(spec, 4, seed=3)]
        first.begin_step(3)
        a = first.dispatch(1, *rows[0])
        other_layer = first.dispatch(2, *rows[1])
        second.begin_step(4)
        second.begin_step(4)
        b = second.dispatch(1, *rows[2])
        batch = receive(endpoint)
        assert batch.layer == 1
        found = [(s.source, s.step, s.start, s.stop) for s in batch.segments]
        assert sorted(found) == sorted([(0, 0, *span(found, 0, 3)), (1, 1, *span(found, 1, 4))])
        answer(endpoint, batch)
        batch = receive(endpoint)
        assert (batch.layer, batch.x_RD.shape[0]) == (2, 2)
        answer(endpoint, batch)
        assert same_bits(first.combine(a), expected(spec, 1, rows[0]))
        assert same_bits(second.combine(b), expected(spec, 1, rows[2]))
        assert same_bits(first.combine(other_layer), expected(spec, 2, rows[1]))


def span(found: list[tuple[int, int, int, int]], source: int, length: int) -> tuple[int, int]:
    [start] = [f[2] for f in found if f[0] == source]
    return start, start + length


def test_a_merged_batch_keeps_to_max_rows_and_to_whole_messages(endpoint: LinkEndpoint) -> None:
    spec = endpoint.spec
    with closing(connect(endpoint, spec)) as dispatcher:
        dispatcher.begin_step(60)
        handles = [(rows := make_rows(spec, 30, seed), dispatcher.dispatch(1, *rows)) for seed in range(2)]
        for _ in range(2):
            batch = receive(endpoint)
            assert batch.x_RD.shape[0] == 30
            answer(endpoint, batch)
        for rows, handle in handles:
            assert same_bits(dispatcher.combine(handle), expected(spec, 1, rows))


def test_two_outstanding_handles_combined_in_reverse(endpoint: LinkEndpoint) -> None:
    spec = endpoint.spec
    with closing(connect(endpoint, spec)) as dispatcher:
        dispatcher.begin_step(2)
        rows = [make_rows(spec, 2, seed=layer) for layer in (1, 2)]
        handles = [dispatcher.dispatch(layer, *rows[layer - 1]) for layer in (1, 2)]
        for _ in handles:
            answer(endpoint, receive(endpoint))
        for layer in (2, 1):
            assert same_bits(dispatcher.combine(handles[layer - 1]), expected(spec, layer, rows[layer - 1]))


def test_order_of_arrival_does_not_change_the_sum(tmp_path: Path) -> None:
    spec = make_spec()
    endpoints = [LinkEndpoint(spec, shard, f"unix:{tmp_path}/{shard}.sock") for shard in range(4)]
    worker = Worker(lambda: LinkDispatcher(spec, 0, [e.address for e in endpoints], 5.0))
    while worker.is_alive():
        for it in endpoints:
            assert it.receive(0.01) is None
    dispatcher = worker.result()
    rows = make_rows(spec, 9)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        dispatcher.begin_step(9)
        combined = Worker(lambda: dispatcher.combine(dispatcher.dispatch(2, *rows)))
        batches = [receive(it) for it in endpoints]
        for shard in order:
            answer(endpoints[shard], batches[shard])
            time.sleep(0.02)
        assert same_bits(combined.result(), expected(spec, 2, rows))
    for it in (dispatcher, *endpoints):
        it.close()


def test_messages_larger_than_the_socket_both_ways(tmp_path: Path) -> None:
    """Two dispatches of 8 MB meet an endpoint that answers the first before it reads the second."""
    spec = make_spec(**ONE_SHARD, hidden_size=4096)
    with closing(LinkEndpoint(spec, 0, f"unix:{tmp_path}/0.sock")) as endpoint:
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                if batch := endpoint.receive(0.05):
                    endpoint.reply(batch, batch.x_RD)

        server = Worker(serve)
        with closing(LinkDispatcher(spec, 0, [endpoint.address], 10.0)) as dispatcher:
            dispatcher.begin_step(1024)
            rows = [make_rows(spec, 512, seed) for seed in range(2)]
            handles = [dispatcher.dispatch(layer + 1, *rows[layer]) for layer in range(2)]
            for handle, (x_TD, _, _) in zip(handles, rows, strict=True):
                assert torch.equal(dispatcher.combine(handle), x_TD)
        stop.set()
        server.result()


def test_nothing_is_sent_to_a_shard_without_rows(tmp_path: Path) -> None:
    spec = make_spec(**{**ONE_SHARD, "num_shards": 2, "num_experts": 24})
    endpoints = [LinkEndpoint(spec, shard, f"unix:{tmp_path}/{shard}.sock") for shard in range(2)]
    worker = Worker(lambda: LinkDispatcher(spec, 0, [e.address for e in endpoints], 5.0))
    while worker.is_alive():
        for it in endpoints:
            assert it.receive(0.01) is None
    with closing(worker.result()) as dispatcher:
        dispatcher.begin_step(3)
        handle = dispatcher.dispatch(1, *make_rows(spec, 3, experts=range(12, 24)))
        answer(endpoints[1], receive(endpoints[1]))
        dispatcher.combine(handle)
        assert endpoints[0].receive(0.05) is None
        assert dispatcher.stats.sent_bytes[0] == 0 < dispatcher.stats.sent_bytes[1]
        assert dispatcher.stats.received_bytes == endpoints_sent(endpoints)
    for it in endpoints:
        it.close()


def endpoints_sent(endpoints: list[LinkEndpoint]) -> list[int]:
    return [sum(it.stats.sent_bytes) for it in endpoints]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 25),
        ("top_k", 3),
        ("num_experts", 13),
        ("moe_layers", (1, 2)),
        ("row_dtype", torch.bfloat16),
        ("checkpoint_id", "decaf"),
        ("epoch", 8),
    ],
)
def test_handshake_refuses_another_spec(endpoint: LinkEndpoint, field: str, value: Any) -> None:
    spec = replace(endpoint.spec, **{field: value})
    ours, theirs = wire.spec_fields(endpoint.spec)[field], wire.spec_fields(spec)[field]
    with pytest.raises(ProtocolMismatch) as failure:
        connect(endpoint, spec)
    assert f"{field}: expected {ours!r}, got {theirs!r}" in str(failure.value)
    connect(endpoint, endpoint.spec).close()


def test_handshake_refuses_another_number_of_shards(endpoint: LinkEndpoint) -> None:
    spec = replace(endpoint.spec, num_shards=2)
    worker = Worker(lambda: LinkDispatcher(spec, 0, [endpoint.address] * 2, 5.0))
    pump_until(endpoint, lambda: not worker.is_alive())
    with pytest.raises(ProtocolMismatch, match=r"shard 0: .*num_shards: expected 1, got 2"):
        worker.result()


def test_handshake_refuses_a_call_for_another_shard(tmp_path: Path) -> None:
    spec = make_spec(num_shards=2)
    with closing(LinkEndpoint(spec, 1, f"unix:{tmp_path}/1.sock")) as endpoint:
        worker = Worker(lambda: LinkDispatcher(spec, 0, [endpoint.address] * 2, 5.0))
        pump_until(endpoint, lambda: not worker.is_alive())
        with pytest.raises(ProtocolMismatch, match=r"shard: expected 1, got 0"):
            worker.result()


GARBAGE = {
    "noise": b"GET / HTTP/1.1\r\nHost: shard\r\n\r\n".ljust(200, b"x"),
    "other version": struct.pack("<4sH", wire.MAGIC, 9).ljust(64, b"\0"),
    "bad checksum": wire.control(wire.Kind.HELLO, b"{}")[0][:-1] + b"\xff",
    "not json": b"".join(wire.control(wire.Kind.HELLO, b"hello")),
    "huge payload": wire.pack_header(wire.Header(wire.Kind.HELLO, None, 0, 0, 0, 0, 0, 0, 0, 1 << 60)),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_closes_its_link_and_no_other(endpoint: LinkEndpoint, name: str, caplog: Any) -> None:
    with closing(connect(endpoint, endpoint.spec)) as dispatcher:
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(endpoint.address.removeprefix("unix:"))
            stranger.sendall(GARBAGE[name])
            pump_until(endpoint, lambda: "a stranger" in caplog.text)
            assert wire.parse_header(stranger.recv(1 << 16)).kind is wire.Kind.REFUSE
            assert [r.levelno for r in caplog.records if "a stranger" in r.message] == [logging.ERROR]
        rows = make_rows(endpoint.spec, 2)
        dispatcher.begin_step(2)
        handle = dispatcher.dispatch(1, *rows)
        answer(endpoint, receive(endpoint))
        assert same_bits(dispatcher.combine(handle), expected(endpoint.spec, 1, rows))


def test_a_silent_stranger_is_dropped(endpoint: LinkEndpoint, caplog: Any) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(endpoint.address.removeprefix("unix:"))
        pump_until(endpoint, lambda: "no HELLO within 0.5 s" in caplog.text)


def raw_link(endpoint: LinkEndpoint, source: int = 0) -> socket.socket:
    """A welcomed link whose messages the test writes by hand."""
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(5.0)
    link.connect(endpoint.address.removeprefix("unix:"))
    link.sendall(b"".join(handshake.hello(endpoint.spec, source, endpoint.shard)))
    pump_until(endpoint, lambda: any(it.source == source for it in endpoint._links.values()))
    assert wire.parse_header(link.recv(1 << 16)).kind is wire.Kind.WELCOME
    return link


def message(spec: WireSpec, expert: int = 0, **changes: Any) -> bytes:
    header = wire.dispatch_header(spec, 0, 0, 1, 1)._replace(**changes)
    ids = struct.pack("<i", expert) * spec.top_k
    payload = ids.ljust(wire.dispatch_bytes(spec, 1), b"\0")
    return wire.pack_header(header) + payload[: header.payload_bytes]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"epoch": 6}, "epoch: expected 7, got 6"),
        ({"layer": 9}, "layer: expected an MoE layer in 1..3, got 9"),
        ({"source": 4}, "source: expected 0, got 4"),
        ({"hidden_size": 23}, "hidden_size: expected 24, got 23"),
        ({"top_k": 5}, "top_k: expected 4, got 5"),
        ({"dtype": torch.bfloat16}, "dtype: expected torch.float32, got torch.bfloat16"),
        ({"kind": wire.Kind.REPLY}, "kind: expected <Kind.DISPATCH: 4>, got <Kind.REPLY: 5>"),
        ({"num_rows": 2}, "payload_bytes: expected 256, got 128"),
        ({"num_rows": 0, "payload_bytes": 0}, "num_rows: expected 1..50, got 0"),
        ({"payload_bytes": 1 << 40}, "payload_bytes: at most 65536 expected, got 1099511627776"),
    ],
)
def test_a_wrong_message_is_answered_with_both_numbers(
    endpoint: LinkEndpoint, data: dict[str, Any], words: str
) -> None:
    with raw_link(endpoint) as link:
        link.sendall(message(endpoint.spec, **data))
        pump_until(endpoint, lambda: not endpoint._links)
        reason = link.recv(1 << 16)
    assert wire.parse_header(reason).kind is wire.Kind.ERROR
    assert words in reason[wire.HEADER_BYTES :].decode()


def test_ids_of_other_shards_are_refused(endpoint: LinkEndpoint) -> None:
    with raw_link(endpoint) as link:
        link.sendall(message(endpoint.spec, expert=12))
        pump_until(endpoint, lambda: not endpoint._links)
        assert b"ids: expected those of range(0, 12) or -1" in link.recv(1 << 16)


def test_a_message_may_arrive_byte_by_byte_or_several_at_once(endpoint: LinkEndpoint) -> None:
    with raw_link(endpoint) as link:
        data = message(endpoint.spec, expert=3)
        for byte in data[:-1]:
            link.sendall(bytes([byte]))
            assert endpoint.receive(0) is None
        link.sendall(data[-1:] + data + data[:70])
        assert [s.stop for s in receive(endpoint).segments] == [1, 2]
        link.sendall(data[70:])
        assert receive(endpoint).topk_ids_RK.tolist() == [[3, 3, 3, 3]]


def test_too_many_rows_are_refused_before_they_are_sent(endpoint: LinkEndpoint) -> None:
    with closing(connect(endpoint, endpoint.spec)) as dispatcher:
        dispatcher.begin_step(51)
        with pytest.raises(ProtocolMismatch, match="shard 0: at most 50 rows a message, got 51"):
            dispatcher.dispatch(1, *make_rows(endpoint.spec, 51))


def test_a_shard_that_dies_is_named_at_once(tmp_path: Path) -> None:
    spec = make_spec(num_shards=2)
    endpoints = [LinkEndpoint(spec, shard, f"unix:{tmp_path}/{shard}.sock") for shard in range(2)]
    worker = Worker(lambda: LinkDispatcher(spec, 0, [e.address for e in endpoints], 10.0))
    while worker.is_alive():
        for it in endpoints:
            assert it.receive(0.01) is None
    with closing(worker.result()) as dispatcher, closing(endpoints[0]):
        dispatcher.begin_step(4)
        combined = Worker(lambda: dispatcher.combine(dispatcher.dispatch(3, *make_rows(spec, 4))))
        answer(endpoints[0], receive(endpoints[0]))
        receive(endpoints[1])
        endpoints[1].close()
        started = time.monotonic()
        with pytest.raises(PeerLost, match=r"shard 1, layer 3, step 0: the other side closed the link"):
            combined.result()
        assert time.monotonic() - started < 1
        # A later dispatch fails as clearly, and its handle still owns the rows.
        handle = dispatcher.dispatch(1, *make_rows(spec, 4))
        with pytest.raises(PeerLost, match="shard 1, layer 1"):
            dispatcher.combine(handle)
        assert handle.x_TD.shape == (4, 24)


def test_a_silent_shard_is_named_after_the_limit(endpoint: LinkEndpoint) -> None:
    with closing(connect(endpoint, endpoint.spec, timeout_s=0.3)) as dispatcher:
        rows = make_rows(endpoint.spec, 1)
        dispatcher.begin_step(1)
        handle = dispatcher.dispatch(2, *rows)
        with pytest.raises(TransportTimeout, match=r"shard 0, layer 2, step 0: no reply within 0.3 s"):
            dispatcher.combine(handle)
        late = receive(endpoint)
        dispatcher.begin_step(1)
        handle = dispatcher.dispatch(2, *rows)
        answer(endpoint, late)
        answer(endpoint, receive(endpoint))
        assert same_bits(dispatcher.combine(handle), expected(endpoint.spec, 2, rows))


def test_an_endpoint_that_never_answers_the_handshake(tmp_path: Path) -> None:
    spec = make_spec(**ONE_SHARD)
    with (
        closing(LinkEndpoint(spec, 0, f"unix:{tmp_path}/0.sock")) as endpoint,
        pytest.raises(TransportTimeout, match=r"shards \[0\]: no answer to the handshake within 0.2 s"),
    ):
        LinkDispatcher(spec, 0, [endpoint.address], 0.2)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(PeerLost, match=f"shard 0: cannot connect to unix:{tmp_path}/0.sock: No such file"):
        LinkDispatcher(make_spec(**ONE_SHARD), 0, [f"unix:{tmp_path}/0.sock"])


def test_an_unasked_reply_is_a_mismatch(endpoint: LinkEndpoint) -> None:
    with closing(connect(endpoint, endpoint.spec)) as dispatcher:
        dispatcher.begin_step(1)
        handle = dispatcher.dispatch(2, *make_rows(endpoint.spec, 1))
        batch = receive(endpoint)
        batch.ticket[0].header = batch.ticket[0].header._replace(step=5)
        answer(endpoint, batch)
        words = r"shard 0, layer 2, step 0: reply: .*outstanding: \(step 0, layer 2\); got \(step 5, layer 2\)"
        with pytest.raises(ProtocolMismatch, match=words):
            dispatcher.combine(handle)


def test_a_dead_attention_worker_does_not_hurt_the_shard(endpoint: LinkEndpoint, caplog: Any) -> None:
    spec = endpoint.spec
    doomed, other = connect(endpoint, spec, 0), connect(endpoint, spec, 1)
    with closing(other):
        doomed.begin_step(1)
        doomed.dispatch(1, *make_rows(spec, 1))
        doomed.dispatch(2, *make_rows(spec, 1))
        batch = receive(endpoint)
        assert len(endpoint._waiting) == 1
        doomed.close()
        pump_until(endpoint, lambda: len(endpoint._links) == 1)
        answer(endpoint, batch)
        assert "drops a reply for layer 1: attention worker 0 is gone" in caplog.text
        other.begin_step(2)
        rows = make_rows(spec, 2)
        handle = other.dispatch(2, *rows)
        batch = receive(endpoint)
        assert [segment.source for segment in batch.segments] == [1]
        answer(endpoint, batch)
        assert same_bits(other.combine(handle), expected(spec, 2, rows))


def test_a_worker_that_connects_anew_replaces_its_old_link(endpoint: LinkEndpoint) -> None:
    old = connect(endpoint, endpoint.spec)
    with closing(old), closing(connect(endpoint, endpoint.spec)) as new:
        assert len(endpoint._links) == 1
        new.begin_step(1)
        handle = new.dispatch(1, *make_rows(endpoint.spec, 1))
        answer(endpoint, receive(endpoint))
        new.combine(handle)
        old.begin_step(1)
        handle = old.dispatch(1, *make_rows(endpoint.spec, 1))
        with pytest.raises(PeerLost, match="shard 0"):
            old.combine(handle)


def test_socket_files_come_and_go(tmp_path: Path) -> None:
    spec, path = make_spec(**ONE_SHARD), tmp_path / "0.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    endpoint = LinkEndpoint(spec, 0, f"unix:{path}")
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="another process listens"):
        LinkEndpoint(spec, 0, f"unix:{path}")
    endpoint.close()
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is not a socket"):
        LinkEndpoint(spec, 0, f"unix:{path}")
    assert path.read_text() == "precious"


@pytest.mark.parametrize("address", ["", "unix:", "tcp:host", "tcp::5", "tcp:host:x", "http://x:1", "tcp:h:70000"])
def test_bad_addresses(address: str) -> None:
    with pytest.raises(ConfigError, match="address: must be unix:/path or tcp:host:port"):
        LinkEndpoint(make_spec(**ONE_SHARD), 0, address)


def test_a_path_too_long_for_a_socket() -> None:
    with pytest.raises(ConfigError, match="at most 107 bytes, got 201"):
        LinkEndpoint(make_spec(**ONE_SHARD), 0, "unix:/" + "x" * 200)


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_leaks(tmp_path: Path) -> None:
    spec = make_spec(**ONE_SHARD)
    before = num_descriptors()
    for _ in range(3):
        with closing(LinkEndpoint(spec, 0, f"unix:{tmp_path}/0.sock")) as endpoint:
            connect(endpoint, spec).close()
            with pytest.raises(ProtocolMismatch):
                connect(endpoint, replace(spec, epoch=1))
            connect(endpoint, spec).close()
    assert num_descriptors() == before
