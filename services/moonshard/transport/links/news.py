"""What other threads tell a dispatcher, and the descriptor that ends its wait when they do."""

import queue
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

from moonshard.transport.links.dialer import Target
from moonshard.transport.links.handle import ShardLink


class News:
    """waiting: something was told since `silence`. end: why the dispatcher should stop waiting, or empty."""

    def __init__(self) -> None:
        self.waiting = False
        self.end = ""
        self._epoch = 0
        self._targets: tuple[Target, ...] = ()
        self._links: queue.SimpleQueue[ShardLink] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    def tell_members(self, epoch: int, targets: Sequence[Target]) -> None:
        with self._lock:
            if epoch <= self._epoch:
                return
            self._epoch, self._targets = epoch, tuple(targets)
        self._ring()

    def tell_link(self, link: ShardLink) -> None:
        with self._lock:
            if self._closed:
                link.stream.close()
                return
            self._links.put(link)
        self._ring()

    def tell_end(self, reason: str) -> None:
        self.end = reason
        self._ring()

    def silence(self) -> None:
        """Before reading what was told: what comes later rings again."""
        self.waiting = False
        with suppress(BlockingIOError):
            while self._reader.recv(64):
                pass

    def members(self) -> tuple[Target, ...]:
        """Those told last, once."""
        with self._lock:
            targets, self._targets = self._targets, ()
        return targets

    def links(self) -> list[ShardLink]:
        """Those that came, each once."""
        found = []
        with suppress(queue.Empty):
            while True:
                found.append(self._links.get_nowait())
        return found

    def close(self) -> None:
        """Links that were told, or come later, are closed."""
        with self._lock:
            self._closed = True
        for link in self.links():
            link.stream.close()
        self._reader.close()
        self._writer.close()

    def _ring(self) -> None:
        self.waiting = True
        # Full: it rings already. Closed: nobody listens any more.
        with suppress(OSError):
            self._writer.send(b".")
