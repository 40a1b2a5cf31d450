"""Waiting on the shard's side: which links have something to do. Natively, whole messages come from one call."""

import ctypes
import math
import select
import socket
from typing import Protocol

from moonshard.kernels import links as kernel_links
from moonshard.kernels.links import LinkRecord, LinkShape, State
from moonshard.transport.links.answers import Answers
from moonshard.transport.links.stream import Stream

MESSAGE = 1 << 16
"""An event beside poll's: a whole, checked DISPATCH fills the stream's slab."""


# Plain numbers: an enumeration's members cost a look-up each, for every batch.
_MESSAGE, _TROUBLE = int(State.MESSAGE), int(State.TROUBLE)


class Poller(Protocol):
    def add(self, stream: Stream) -> None: ...

    def remove(self, stream: Stream) -> None: ...

    def watch(self, stream: Stream, reads: bool) -> None:
        """Say anew what is wanted of a stream: room for what is unsent, and with `reads` also its messages."""

    def wait(self, timeout_s: float, answers: Answers | None = None) -> list[tuple[int, int]]:
        """(descriptor, event) as poll gives them; early when a signal came. With `answers`, messages that the native
        call can answer by itself do not show, and it reports to `answers`."""


class PythonPoller:
    """poll, and nothing read."""

    def __init__(self, listener: socket.socket) -> None:
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._watched: dict[int, int] = {}

    def add(self, stream: Stream) -> None:
        self._poll.register(stream, select.POLLIN)
        self._watched[stream.fileno()] = select.POLLIN

    def remove(self, stream: Stream) -> None:
        self._poll.unregister(stream)
        del self._watched[stream.fileno()]

    def watch(self, stream: Stream, reads: bool) -> None:
        wanted = (select.POLLOUT if stream.unsent else 0) | (select.POLLIN if reads else 0)
        if wanted != self._watched[stream.fileno()]:
            self._watched[stream.fileno()] = wanted
            self._poll.modify(stream, wanted)

    def wait(self, timeout_s: float, answers: Answers | None = None) -> list[tuple[int, int]]:
        return self._poll.poll(max(0, math.ceil(timeout_s * 1000)))


class NativePoller:
    """Reads and checks the rows of welcomed links; strangers and everything unusual come back as poll's events."""

    def __init__(self, library: ctypes.CDLL, listener: socket.socket, shape: LinkShape) -> None:
        self._receive, self._answer = library.ms_link_receive, library.ms_link_answer
        self._listener_fd = listener.fileno()
        self._shape = shape
        self._shape_at = ctypes.addressof(shape)
        self._records: list[LinkRecord] = []
        self._refresh()

    def add(self, stream: Stream) -> None:
        self._records.append(stream.record)
        self._refresh()

    def remove(self, stream: Stream) -> None:
        self._records = [record for record in self._records if record is not stream.record]
        self._refresh()

    def watch(self, stream: Stream, reads: bool) -> None:
        stream.record.reads = reads

    def wait(self, timeout_s: float, answers: Answers | None = None) -> list[tuple[int, int]]:
        rest = self._table_at, len(self._records), self._listener_fd, int(timeout_s * 1e9)
        if answers is None:
            found = self._receive(self._shape_at, *rest)
        else:
            found = self._answer(self._shape_at, answers.address, *rest)
        if not found:
            return []
        events = []
        for record in self._records:
            if (state := record.state) == _MESSAGE:
                events.append((record.fd, MESSAGE))
            elif state == _TROUBLE:
                record.state = State.QUIET
                events.append((record.fd, record.revents))
        if found > len(events):
            events.append((self._listener_fd, select.POLLIN))
        return events

    def _refresh(self) -> None:
        self._table = (ctypes.c_void_p * max(1, len(self._records)))(*map(ctypes.addressof, self._records))
        self._table_at = ctypes.addressof(self._table)


def make_poller(listener: socket.socket, shape: LinkShape) -> Poller:
    library = kernel_links.native_links()
    return NativePoller(library, listener, shape) if library else PythonPoller(listener)
