"""A worker's control stream over the lives of several routers: when one dies, the worker joins the next.

Threads of the link's own do it, so that the worker's loop goes on. A router that ends the stream on purpose is not
sought again: whoever it sends away has to go.
"""

import logging
import queue
import threading
from collections.abc import Callable

from moonshard.errors import ConfigError, Unavailable
from moonshard.rpc.worker_stream import RouterLink
from moonshard.v1 import control_pb2 as pb

logger = logging.getLogger(__name__)

Connect = Callable[[Callable[[], None], float], RouterLink]
"""connect(notify, timeout_s): a joined stream. Raises ConfigError or Unavailable."""


_SAID_AGAIN = ("placed", "loaded", "ready")


class LastingLink:
    """As RouterLink, whose methods have the same names. lost: for good, `reason` says why.

    keep_s: how long a new router is waited for; 0: a lost stream is the end. wanted: whether it should be at all.
    rejoined: called before the new router hears that the worker is ready: what the old one wanted is void.
    """

    def __init__(
        self,
        connect: Connect,
        join_s: float,
        keep_s: float,
        notify: Callable[[], None],
        wanted: Callable[[], bool],
        rejoined: Callable[[], None],
    ) -> None:
        """Joins within join_s. Raises ConfigError or Unavailable."""
        self.lost = threading.Event()
        self.reason = ""
        self._connect, self._keep_s = connect, keep_s
        self._notify, self._wanted, self._rejoined = notify, wanted, rejoined
        self._senders: list[tuple[str, Callable[[], pb.WorkerMessage | None], float]] = []
        self._said: dict[str, pb.WorkerMessage] = {}
        self._changing = threading.Lock()
        self._seeker: threading.Thread | None = None
        self._link: RouterLink | None = None
        self._link = connect(self._news, join_s)
        self._news()

    @property
    def is_connected(self) -> bool:
        link = self._link
        return link is not None and not link.lost.is_set()

    def send(self, message: pb.WorkerMessage) -> None:
        """Any thread, returns at once. Loaded, Ready and which placement is followed are said again to every later
        router; all else is lost without one."""
        if (kind := message.WhichOneof("body")) in _SAID_AGAIN:
            self._said[kind] = message
        self._current.send(message)

    def received(self) -> "queue.Queue[pb.RouterMessage]":
        return self._current.received()

    def start_heartbeats(self, contents: Callable[[], pb.Heartbeat], every_s: float) -> None:
        self.start_sending("router-heartbeat", lambda: pb.WorkerMessage(heartbeat=contents()), every_s)

    def start_sending(self, name: str, make: Callable[[], pb.WorkerMessage | None], every_s: float) -> None:
        self._senders.append((name, make, every_s))
        self._current.start_sending(name, make, every_s)

    def close(self) -> None:
        self._current.close()

    @property
    def _current(self) -> RouterLink:
        assert self._link is not None, "it joins when it is made"
        return self._link

    def _news(self) -> None:
        """From the stream's threads: something came, or the stream is over."""
        link = self._link
        if link is not None and link.lost.is_set():
            with self._changing:
                if self._seeker is None and not self.lost.is_set():
                    self._part(link)
        self._notify()

    def _part(self, link: RouterLink) -> None:
        if self._keep_s and link.is_cut and self._wanted():
            logger.warning("lost the router (%s); waiting %g s for it or the next", link.reason, self._keep_s)
            self._seeker = threading.Thread(target=self._seek, args=(link,), name="router-seeker", daemon=True)
            self._seeker.start()
        else:
            self.reason = link.reason
            self.lost.set()

    def _seek(self, old: RouterLink) -> None:
        try:
            link = self._connect(self._news, self._keep_s)
        except (ConfigError, Unavailable) as error:
            self.reason = str(error)
            self.lost.set()
            self._notify()
            return
        old.close()
        self._rejoined()
        self._link = link
        for kind in _SAID_AGAIN:
            if kind in self._said:
                link.send(self._said[kind])
        for sender in self._senders:
            link.start_sending(*sender)
        logger.info("joined the router again")
        with self._changing:
            self._seeker = None
        self._news()
