"""A worker's end of the control stream, against a real server that speaks the router's part."""

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from moonshard.errors import ConfigError, Unavailable
from moonshard.rpc import worker_stream
from moonshard.rpc.worker_stream import RouterLink
from moonshard.v1 import control_pb2 as pb
from moonshard.v1.control_pb2_grpc import WorkersServicer, add_WorkersServicer_to_server

LIMIT_S = 10.0
JOIN = pb.Join(role=pb.ROLE_EXPERT, rank=3, pid=42)


class PeerRouter(WorkersServicer):
    """Welcomes a worker unless told otherwise, keeps what it says and says what the test puts into `outgoing`."""

    def __init__(self, refusal: str = "", mute: bool = False) -> None:
        self.refusal, self.mute = refusal, mute
        self.received: queue.Queue[pb.WorkerMessage | None] = queue.Queue()
        self.outgoing: queue.Queue[pb.RouterMessage | None] = queue.Queue()

    def Join(self, request_iterator: Any, context: Any) -> Iterator[pb.RouterMessage]:
        assert next(request_iterator).join == JOIN
        if self.refusal:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.refusal)
        if self.mute:
            return
        yield pb.RouterMessage(welcome=pb.Welcome(epoch=5))
        threading.Thread(target=self._read, args=(request_iterator,), daemon=True).start()
        yield from iter(self.outgoing.get, None)

    def _read(self, messages: Any) -> None:
        try:
            for message in messages:
                self.received.put(message)
        except grpc.RpcError:
            pass
        self.received.put(None)
        self.outgoing.put(None)


@contextmanager
def _served(router: PeerRouter, port: int = 0) -> Iterator[str]:
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        add_WorkersServicer_to_server(router, server)
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        try:
            yield f"127.0.0.1:{bound}"
        finally:
            router.outgoing.put(None)
            server.stop(grace=0).wait(LIMIT_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_messages_go_both_ways() -> None:
    router, woken = PeerRouter(), threading.Event()
    with _served(router) as address:
        link = RouterLink.connect(address, JOIN, LIMIT_S, notify=woken.set)
        assert link.welcome.epoch == 5
        router.outgoing.put(pb.RouterMessage(members=pb.Members(epoch=5)))
        assert link.received().get(timeout=LIMIT_S).members.epoch == 5
        assert woken.wait(LIMIT_S)
        link.send(pb.WorkerMessage(ready=pb.Ready(data_address="unix:/x")))
        message = router.received.get(timeout=LIMIT_S)
        assert message is not None
        assert message.ready.data_address == "unix:/x"
        link.close()
        link.close()
        assert router.received.get(timeout=LIMIT_S) is None
        assert link.lost.is_set()


def test_closing_sends_what_is_queued_first() -> None:
    router = PeerRouter()
    with _served(router) as address:
        link = RouterLink.connect(address, JOIN, LIMIT_S)
        for number in range(500):
            link.send(pb.WorkerMessage(heartbeat=pb.Heartbeat(progress=number)))
        link.close()
        numbers = [m.heartbeat.progress for m in iter(lambda: router.received.get(timeout=LIMIT_S), None)]
    assert numbers == list(range(500))


def test_many_threads_may_send() -> None:
    router = PeerRouter()
    with _served(router) as address:
        link = RouterLink.connect(address, JOIN, LIMIT_S)
        beats = [pb.WorkerMessage(heartbeat=pb.Heartbeat(progress=number)) for number in range(200)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(link.send, beats))
        link.close()
        numbers = [m.heartbeat.progress for m in iter(lambda: router.received.get(timeout=LIMIT_S), None)]
    assert sorted(numbers) == list(range(200))


def test_heartbeats_tell_the_current_contents() -> None:
    router, counter = PeerRouter(), iter(range(1000))
    with _served(router) as address:
        link = RouterLink.connect(address, JOIN, LIMIT_S)
        link.start_heartbeats(lambda: pb.Heartbeat(progress=next(counter)), every_s=0.01)
        seen = [router.received.get(timeout=LIMIT_S) for _ in range(3)]
        link.close()
    assert [message.heartbeat.progress for message in seen if message] == [0, 1, 2]


def test_the_router_may_start_later() -> None:
    port = _free_port()
    with ThreadPoolExecutor(1) as pool:
        connecting = pool.submit(RouterLink.connect, f"127.0.0.1:{port}", JOIN, LIMIT_S)
        time.sleep(0.5)
        with _served(PeerRouter(), port):
            connecting.result(timeout=LIMIT_S).close()


def test_nobody_there_is_told_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"no router at 127\.0\.0\.1:\d+ within 0.5 s"):
        RouterLink.connect(f"127.0.0.1:{_free_port()}", JOIN, timeout_s=0.5)
    assert time.monotonic() - began < 3.0


@pytest.mark.parametrize(
    ("router", "error", "words"),
    [
        (lambda: PeerRouter(refusal="rank: taken"), ConfigError, "the router refuses this worker: rank: taken"),
        (lambda: PeerRouter(mute=True), Unavailable, "without a welcome"),
    ],
)
def test_a_join_that_is_not_welcome(router: Callable[[], PeerRouter], error: type[Exception], words: str) -> None:
    with _served(router()) as address, pytest.raises(error, match=words):
        RouterLink.connect(address, JOIN, timeout_s=0.5)


def test_a_router_that_goes_away_is_noticed() -> None:
    woken = threading.Event()
    router = PeerRouter()
    with _served(router) as address:
        link = RouterLink.connect(address, JOIN, LIMIT_S, notify=woken.set)
        router.outgoing.put(None)
        assert link.lost.wait(LIMIT_S)
        assert link.reason == "the router ended the stream"
        assert woken.wait(LIMIT_S)
        link.send(pb.WorkerMessage())  # goes nowhere, hurts nobody
        link.close()


def test_a_router_that_dies_is_noticed() -> None:
    with _served(PeerRouter()) as address:
        link = RouterLink.connect(address, JOIN, LIMIT_S)
    assert link.lost.wait(LIMIT_S)
    assert link.reason
    link.close()


def test_a_worker_that_never_reads_loses_its_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_stream, "MAX_PENDING", 3)
    router = PeerRouter()
    with _served(router) as address:
        link = RouterLink.connect(address, JOIN, LIMIT_S)
        for _ in range(5):
            router.outgoing.put(pb.RouterMessage(abort=pb.Abort()))
        assert link.lost.wait(LIMIT_S)
        assert link.reason == "this worker does not read: 3 messages are waiting"
        link.close()
