"""The links' native calls where they differ from the Python path: hand-over, rounding, gathering, signals."""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from moonshard.errors import PeerLost, ProtocolMismatch, TransportTimeout
from moonshard.transport import wire
from moonshard.transport.contract import WireSpec
from moonshard.transport.links import LinkDispatcher, LinkEndpoint
from tests.contract.conftest import use_engine
from tests.contract.test_links import ONE_SHARD, answer, connect, receive
from tests.contract.transport_cluster import Worker, expected, make_rows, make_spec, same_bits


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    use_engine("native", monkeypatch)


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[LinkEndpoint]:
    with closing(LinkEndpoint(make_spec(**ONE_SHARD), 0, f"unix:{tmp_path}/0.sock", max_rows=2000)) as it:
        yield it


def specials() -> torch.Tensor:
    """Bit patterns around every rounding rule of BF16, [rows, 24] FP32."""
    high = torch.tensor(
        [0x0000, 0x8000, 0x3F80, 0x3F81, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0x0001, 0x8001, 0x4049]
    )
    low = torch.tensor([0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = ((high[:, None] << 16) | low[None, :]).to(torch.int64).flatten()
    return (bits - (bits >> 31 << 32)).to(torch.int32).view(torch.float32).view(-1, 24)


def test_sums_are_rounded_as_torch_rounds(tmp_path: Path) -> None:
    spec = make_spec(**ONE_SHARD, row_dtype=torch.bfloat16)
    y_RD = specials()
    with (
        closing(LinkEndpoint(spec, 0, f"unix:{tmp_path}/0.sock")) as endpoint,
        closing(connect(endpoint, spec)) as dispatcher,
    ):
        dispatcher.begin_step(3)
        handle = dispatcher.dispatch(1, *make_rows(spec, 3))
        endpoint.reply(receive(endpoint), y_RD)
        found, wanted = dispatcher.combine(handle), y_RD.bfloat16().float() + 0.0
        assert torch.equal(found.isnan(), wanted.isnan())
        assert same_bits(found.nan_to_num(7.0), wanted.nan_to_num(7.0))


def test_minus_zero_is_summed_as_everywhere(endpoint: LinkEndpoint) -> None:
    with closing(connect(endpoint, endpoint.spec)) as dispatcher:
        dispatcher.begin_step(1)
        handle = dispatcher.dispatch(1, *make_rows(endpoint.spec, 1))
        endpoint.reply(receive(endpoint), torch.full((1, 24), -0.0))
        assert same_bits(dispatcher.combine(handle), torch.zeros(1, 24))


def test_scattered_rows_larger_than_the_socket(tmp_path: Path) -> None:
    """Every other row goes to a shard: more pieces than one call takes, and more bytes than the socket."""
    spec = make_spec(**{**ONE_SHARD, "num_shards": 2, "num_experts": 24, "hidden_size": 600})
    endpoints = [LinkEndpoint(spec, shard, f"unix:{tmp_path}/{shard}.sock") for shard in range(2)]
    stop = threading.Event()

    def serve(endpoint: LinkEndpoint) -> None:
        while not stop.is_set():
            if batch := endpoint.receive(0.05):
                answer(endpoint, batch)

    servers = [Worker(lambda it=it: serve(it)) for it in endpoints]
    x_TD, ids_TK, weights_TK = make_rows(spec, 1500)
    ids_TK = torch.where(torch.arange(1500)[:, None] % 2 == 0, ids_TK % 12, 12 + ids_TK % 12)
    with closing(LinkDispatcher(spec, 0, [it.address for it in endpoints], 10.0)) as dispatcher:
        for layer in (1, 2):
            dispatcher.begin_step(1500)
            y_TD = dispatcher.combine(dispatcher.dispatch(layer, x_TD, ids_TK, weights_TK))
            assert same_bits(y_TD, expected(spec, layer, (x_TD, ids_TK, weights_TK)))
            assert dispatcher._is_calm()
    stop.set()
    for it, server in zip(endpoints, servers, strict=True):
        server.result()
        it.close()


def test_a_second_handle_and_then_calm_again(endpoint: LinkEndpoint) -> None:
    spec, rows = endpoint.spec, make_rows(endpoint.spec, 2)
    with closing(connect(endpoint, spec)) as dispatcher:
        dispatcher.begin_step(2)
        first = dispatcher.dispatch(1, *rows)
        answer(endpoint, receive(endpoint))
        second = dispatcher.dispatch(2, *rows)
        answer(endpoint, receive(endpoint))
        assert same_bits(dispatcher.combine(second), expected(spec, 2, rows))
        assert same_bits(dispatcher.combine(first), expected(spec, 1, rows))
        assert dispatcher._is_calm()
        third = dispatcher.dispatch(3, *rows)
        assert dispatcher._carried is third
        answer(endpoint, receive(endpoint))
        assert same_bits(dispatcher.combine(third), expected(spec, 3, rows))


def test_a_signal_does_not_end_a_wait(endpoint: LinkEndpoint) -> None:
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    try:
        with closing(connect(endpoint, endpoint.spec)) as dispatcher:
            rows = make_rows(endpoint.spec, 1)
            dispatcher.begin_step(1)
            handle = dispatcher.dispatch(1, *rows)
            batch = receive(endpoint)
            main = threading.main_thread().ident
            assert main is not None
            timers = [
                threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGUSR1)),
                threading.Timer(0.3, answer, (endpoint, batch)),
            ]
            for timer in timers:
                timer.start()
            assert same_bits(dispatcher.combine(handle), expected(endpoint.spec, 1, rows))
            assert seen == [1]
            for timer in timers:
                timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def fake_shard(path: Path, spec: WireSpec, last: bytes) -> Worker:
    """A shard that welcomes one worker, takes one message, sends `last` and hangs up."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as link:
            link.recv(1 << 16)
            link.sendall(b"".join(wire.control(wire.Kind.WELCOME, wire.pack_json({"max_rows": 50}))))
            link.recv(1 << 16)
            link.sendall(last)

    return Worker(serve)


def reply(spec: WireSpec, step: int) -> bytes:
    return wire.pack_header(wire.reply_header(spec, 0, step, 1, 1)) + bytes(wire.reply_bytes(spec, 1))


def test_the_last_reply_of_a_shard_counts(tmp_path: Path) -> None:
    spec = make_spec(**ONE_SHARD)
    server = fake_shard(tmp_path / "0.sock", spec, reply(spec, 0))
    with closing(LinkDispatcher(spec, 0, [f"unix:{tmp_path}/0.sock"], 5.0)) as dispatcher:
        dispatcher.begin_step(1)
        handle = dispatcher.dispatch(1, *make_rows(spec, 1))
        server.result()
        assert same_bits(dispatcher.combine(handle), torch.zeros(1, 24))
        with pytest.raises(PeerLost, match="shard 0, layer 2, step 0"):
            dispatcher.combine(dispatcher.dispatch(2, *make_rows(spec, 1)))


@pytest.mark.parametrize(
    ("last", "error", "words"),
    [
        (b"", PeerLost, "the other side closed the link"),
        (reply(make_spec(**ONE_SHARD), 0)[:100], PeerLost, "the other side closed the link"),
        (reply(make_spec(**ONE_SHARD), 4), ProtocolMismatch, r"got \(step 4, layer 1\)"),
        (b"".join(wire.control(wire.Kind.ERROR, b"no more")), ProtocolMismatch, "the shard closed the link: no more"),
        (b"x" * 200, ProtocolMismatch, "header: magic"),
    ],
    ids=["nothing", "half a reply", "another step", "an error", "noise"],
)
def test_what_is_unusual_gets_its_words_from_python(
    tmp_path: Path, last: bytes, error: type[Exception], words: str
) -> None:
    spec = make_spec(**ONE_SHARD)
    server = fake_shard(tmp_path / "0.sock", spec, last)
    with closing(LinkDispatcher(spec, 0, [f"unix:{tmp_path}/0.sock"], 5.0)) as dispatcher:
        dispatcher.begin_step(1)
        handle = dispatcher.dispatch(1, *make_rows(spec, 1))
        server.result()
        with pytest.raises(error, match=f"shard 0, layer 1, step 0: .*{words}"):
            dispatcher.combine(handle)


def test_a_shard_that_stops_reading_is_named_after_the_limit(tmp_path: Path) -> None:
    spec = make_spec(**ONE_SHARD, hidden_size=1024)
    with (
        closing(LinkEndpoint(spec, 0, f"unix:{tmp_path}/0.sock")) as endpoint,
        closing(connect(endpoint, spec, timeout_s=0.3)) as dispatcher,
    ):
        dispatcher.begin_step(1000)
        handle = dispatcher.dispatch(1, *make_rows(spec, 1000))
        with pytest.raises(TransportTimeout, match=r"shard 0, layer 1, step 0: .*rows not taken within 0.3 s"):
            dispatcher.combine(handle)


def test_totals_are_counted_once(endpoint: LinkEndpoint) -> None:
    with closing(connect(endpoint, endpoint.spec)) as dispatcher:
        for _ in range(3):
            dispatcher.begin_step(5)
            handle = dispatcher.dispatch(1, *make_rows(endpoint.spec, 5))
            answer(endpoint, receive(endpoint))
            dispatcher.combine(handle)
        assert dispatcher.stats.sent_bytes == [3 * (64 + wire.dispatch_bytes(endpoint.spec, 5))]
        assert dispatcher.stats.sent_bytes == endpoint.stats.received_bytes
        assert dispatcher.stats.received_bytes == endpoint.stats.sent_bytes
        assert 0 < dispatcher.stats.wait_s[0] < 5
