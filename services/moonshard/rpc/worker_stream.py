"""A worker's end of the control stream: joins the router, sends and receives in threads of its own.

Workers run a torch loop in their main thread, so nothing here blocks it: `send` puts into a bounded queue, messages
from the router wait in another, and `notify` may wake the loop. The link never reconnects: its owner decides.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from moonshard.errors import ConfigError, Unavailable
from moonshard.rpc.server import KEEPALIVE, message_limits
from moonshard.rpc.tls import ClientTls, open_channel
from moonshard.v1 import control_pb2 as pb
from moonshard.v1.control_pb2_grpc import WorkersStub

logger = logging.getLogger(__name__)

RETRY_S = 0.2
BACKOFF = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000))
MAX_PENDING = 65_536
MAX_MESSAGE_MB = 64

Metadata = tuple[tuple[str, str], ...]


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class WorkerAccess:
    """How to be let in. tls: None dials in plain text. metadata: the operator's key, where one is asked for."""

    tls: ClientTls | None = None
    metadata: Metadata = ()


class RouterLink:
    """One open control stream. Built by `connect`.

    welcome: the router's answer to the join. lost: set when the stream is over for whatever cause, `reason` says why.
    is_cut: the connection broke, nobody ended the stream.
    """

    def __init__(
        self, channel: grpc.Channel, join: pb.Join, notify: Callable[[], None], metadata: Metadata = ()
    ) -> None:
        self.welcome = pb.Welcome()
        self.lost = threading.Event()
        self.reason = ""
        self.is_cut = False
        self._notify = notify
        self._channel = channel
        self._closing = threading.Event()
        self._outgoing: queue.Queue[pb.WorkerMessage | None] = queue.Queue(MAX_PENDING)
        self._incoming: queue.Queue[pb.RouterMessage] = queue.Queue(MAX_PENDING)
        self._threads: list[threading.Thread] = []
        self._outgoing.put(pb.WorkerMessage(join=join))
        self._call: Any = WorkersStub(channel).Join(iter(self._outgoing.get, None), metadata=metadata)

    @classmethod
    def connect(
        cls,
        address: str,
        join: pb.Join,
        timeout_s: float,
        notify: Callable[[], None] | None = None,
        access: WorkerAccess | None = None,
    ) -> "RouterLink":
        """Join the router at host:port, trying again until timeout_s: it may start later than its workers.

        notify: called from another thread after each received message and when the link is lost; keep it short.
        access: TLS and key, none of them when None. Raises ConfigError when the router refuses this worker, Unavailable
        when none answered in time.
        """
        access = access or WorkerAccess()
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return cls._try(address, join, deadline, notify or _nothing, access)
            except Unavailable as error:
                if time.monotonic() + RETRY_S > deadline:
                    raise Unavailable(f"no router at {address} within {timeout_s:g} s: {error}") from None
                time.sleep(RETRY_S)

    @classmethod
    def _try(
        cls, address: str, join: pb.Join, deadline: float, notify: Callable[[], None], access: WorkerAccess
    ) -> "RouterLink":
        channel = open_channel(address, access.tls, (*KEEPALIVE, *BACKOFF, *message_limits(MAX_MESSAGE_MB)))
        ready = grpc.channel_ready_future(channel)
        try:
            ready.result(timeout=max(deadline - time.monotonic(), RETRY_S))
            link = cls(channel, join, notify, access.metadata)
            link._await_welcome(deadline)
        except grpc.FutureTimeoutError:
            ready.cancel()
            channel.close()
            raise Unavailable("nobody listens") from None
        except (ConfigError, Unavailable):
            channel.close()
            raise
        link._start("router-reader", link._read)
        return link

    def _await_welcome(self, deadline: float) -> None:
        cut = threading.Timer(max(deadline - time.monotonic(), RETRY_S), self._call.cancel)
        cut.start()
        try:
            self.welcome = next(self._call).welcome
        except StopIteration:
            raise Unavailable("the router ended the stream without a welcome") from None
        except grpc.RpcError as error:
            self._outgoing.put(None)
            if error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAUTHENTICATED):
                raise ConfigError("join", f"the router refuses this worker: {error.details()}") from None
            raise Unavailable(_describe(error)) from None
        finally:
            cut.cancel()

    def send(self, message: pb.WorkerMessage) -> None:
        """Queue a message and return at once; any thread. After the link is lost it goes nowhere."""
        try:
            self._outgoing.put_nowait(message)
        except queue.Full:
            self._lose(f"the router does not read: {MAX_PENDING} messages are waiting")

    def received(self) -> "queue.Queue[pb.RouterMessage]":
        """Messages from the router, oldest first."""
        return self._incoming

    def start_heartbeats(self, contents: Callable[[], pb.Heartbeat], every_s: float) -> None:
        """Send `contents()` every every_s seconds, called in a thread of the link's own."""
        self.start_sending("router-heartbeat", lambda: pb.WorkerMessage(heartbeat=contents()), every_s)

    def start_sending(self, name: str, make: Callable[[], pb.WorkerMessage | None], every_s: float) -> None:
        """Send what `make` makes, if anything, every every_s seconds; it is called in a thread called `name`."""
        self._start(name, lambda: self._repeat(make, every_s))

    def close(self) -> None:
        """Send what is queued, half-close and end the threads. Safe to call twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._send_end()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=2.0)
        self._channel.close()

    def _send_end(self) -> None:
        try:
            self._outgoing.put_nowait(None)
        except queue.Full:
            self._call.cancel()

    def _start(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _repeat(self, make: Callable[[], pb.WorkerMessage | None], every_s: float) -> None:
        while not (self._closing.is_set() or self.lost.is_set()):
            if (message := make()) is not None:
                self.send(message)
            self._closing.wait(every_s)

    def _read(self) -> None:
        try:
            for message in self._call:
                self._incoming.put_nowait(message)
                self._notify()
            self._lose("the router ended the stream")
        except queue.Full:
            self._lose(f"this worker does not read: {MAX_PENDING} messages are waiting")
        except grpc.RpcError as error:
            self.is_cut = error.code() is grpc.StatusCode.UNAVAILABLE
            self._lose(_describe(error))

    def _lose(self, reason: str) -> None:
        if self.lost.is_set():
            return
        self.reason = reason
        self.lost.set()
        if not self._closing.is_set():
            logger.warning("the router's stream ended: %s", reason)
        self._call.cancel()
        self._notify()


def _describe(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {error.details()}"
