"""A worker's stream over several routers' lives: what is said again, what is not, and when it ends for good."""

import queue
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from moonshard.errors import Unavailable
from moonshard.rpc.lasting_link import LastingLink
from moonshard.rpc.worker_stream import RouterLink
from moonshard.v1 import control_pb2 as pb

LIMIT_S = 5.0
READY = pb.WorkerMessage(ready=pb.Ready(data_address="unix:/x"))
BEAT = pb.WorkerMessage(heartbeat=pb.Heartbeat(tokens=1))


class PeerStream:
    """One router's life."""

    def __init__(self, notify: Callable[[], None]) -> None:
        self.lost, self.is_cut, self.reason = threading.Event(), False, ""
        self.sent: list[pb.WorkerMessage] = []
        self.senders: list[str] = []
        self.is_closed = False
        self._notify = notify
        self._received: queue.Queue[pb.RouterMessage] = queue.Queue()

    def send(self, message: pb.WorkerMessage) -> None:
        self.sent.append(message)

    def received(self) -> "queue.Queue[pb.RouterMessage]":
        return self._received

    def start_sending(self, name: str, *_: Any) -> None:
        self.senders.append(name)

    def close(self) -> None:
        self.is_closed = True

    def end(self, reason: str, is_cut: bool) -> None:
        self.reason, self.is_cut = reason, is_cut
        self.lost.set()
        self._notify()


class Routers:
    """Those that the link has joined. comes: another one listens."""

    def __init__(self) -> None:
        self.streams: list[PeerStream] = []
        self.order: list[str] = []
        self.comes = threading.Event()
        self.comes.set()

    def connect(self, notify: Callable[[], None], timeout_s: float) -> RouterLink:
        if not self.comes.wait(timeout_s):
            raise Unavailable("no router")
        self.streams.append(PeerStream(notify))
        return cast(RouterLink, self.streams[-1])


class Watcher:
    def __init__(self, routers: Routers, keep_s: float = LIMIT_S) -> None:
        self.wanted, self.num_rejoined, self.changed = True, 0, threading.Event()
        self.link = LastingLink(routers.connect, LIMIT_S, keep_s, self.changed.set, lambda: self.wanted, self._rejoined)

    def _rejoined(self) -> None:
        self.num_rejoined += 1


def await_streams(routers: Routers, link: LastingLink, count: int) -> None:
    waiting = threading.Event()
    for _ in range(500):
        if len(routers.streams) == count and link.is_connected and link._seeker is None:
            return
        waiting.wait(0.01)
    raise AssertionError(f"{len(routers.streams)} streams, not {count}")


def test_the_next_router_hears_that_the_worker_is_ready_and_nothing_else_of_before() -> None:
    routers = Routers()
    watcher = Watcher(routers)
    link = watcher.link
    link.start_sending("beats", lambda: BEAT, 1.0)
    placed = [pb.WorkerMessage(placed=pb.Placed(generation=generation)) for generation in (1, 2)]
    for message in (READY, placed[0], BEAT, placed[1]):
        link.send(message)
    routers.comes.clear()
    routers.streams[0].end("UNAVAILABLE: Socket closed", is_cut=True)
    assert not link.is_connected
    assert not link.lost.is_set()
    link.send(BEAT)
    routers.comes.set()
    await_streams(routers, link, 2)
    assert routers.streams[0].is_closed
    assert (routers.streams[1].sent, routers.streams[1].senders) == ([placed[1], READY], ["beats"])
    assert watcher.num_rejoined == 1
    link.send(BEAT)
    assert routers.streams[1].sent == [placed[1], READY, BEAT]
    assert link.received() is routers.streams[1].received()


def test_it_outlives_many_routers() -> None:
    routers = Routers()
    watcher = Watcher(routers)
    for number in range(1, 6):
        routers.streams[-1].end("UNAVAILABLE", is_cut=True)
        await_streams(routers, watcher.link, number + 1)
    assert watcher.num_rejoined == 5


@pytest.mark.parametrize(("is_cut", "keep_s", "wanted"), [(False, 5.0, True), (True, 0.0, True), (True, 5.0, False)])
def test_who_is_sent_away_or_wants_to_end_seeks_nobody(is_cut: bool, keep_s: float, wanted: bool) -> None:
    routers = Routers()
    watcher = Watcher(routers, keep_s)
    watcher.wanted = wanted
    routers.streams[0].end("CANCELLED", is_cut)
    assert watcher.link.lost.is_set()
    assert watcher.link.reason == "CANCELLED"
    assert len(routers.streams) == 1


def test_it_is_lost_when_no_router_comes() -> None:
    routers = Routers()
    watcher = Watcher(routers, keep_s=0.05)
    routers.comes.clear()
    routers.streams[0].end("UNAVAILABLE", is_cut=True)
    assert watcher.link.lost.wait(LIMIT_S)
    assert watcher.link.reason == "no router"
