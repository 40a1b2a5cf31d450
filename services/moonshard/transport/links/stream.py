"""One non-blocking stream socket that carries whole messages both ways. It never waits; its owner polls."""

import socket
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moonshard.errors import PeerLost, ProtocolMismatch
from moonshard.transport.wire import CONTROL_BYTES_MAX, HEADER_BYTES, Bytes, Header, parse_header

Buffer = bytes | memoryview | NDArray[Any]
"""Contiguous memory. NumPy before 2.3 does not tell type checkers that its arrays are buffers, hence the ignores."""

_SMALL_BYTES = 128 * 1024
_BUFFERS_PER_CALL = 64


class Message(NamedTuple):
    """payload: memory of its own, not touched by later reads."""

    header: Header
    payload: Bytes


class Stream:
    """Messages up to _SMALL_BYTES share one buffer and usually take one recv; a longer one gets its own memory."""

    def __init__(self, connection: socket.socket, payload_bytes_max: int = CONTROL_BYTES_MAX) -> None:
        connection.setblocking(False)
        self.payload_bytes_max = payload_bytes_max
        self._socket = connection
        self._small: Bytes = np.empty(_SMALL_BYTES, np.uint8)
        self._buffer = self._small
        self._filled = 0
        self._header: Header | None = None
        self._outbox: deque[memoryview] = deque()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def unsent(self) -> bool:
        """Whether bytes wait for room in the socket."""
        return bool(self._outbox)

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    def send(self, *buffers: Buffer) -> None:
        """Send what fits in one call; `flush` sends the rest, buffers stay unchanged until then. Raises PeerLost."""
        if self._outbox:
            self._outbox.extend(_view(buffer) for buffer in buffers)
            return
        sent = self._sendmsg(buffers)
        if sent < sum(map(_num_bytes, buffers)):
            self._outbox.extend(_view(buffer) for buffer in buffers)
            self._drop(sent)
            self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it. Raises PeerLost."""
        while self._outbox:
            sent = self._sendmsg(tuple(self._outbox)[:_BUFFERS_PER_CALL])
            if not sent:
                return
            self._drop(sent)

    def receive(self) -> list[Message]:
        """The messages that one recv completes. Raises PeerLost and ProtocolMismatch."""
        self._filled += self._recv()
        messages = []
        while (message := self._next_message()) is not None:
            messages.append(message)
        return messages

    def close(self) -> None:
        self._socket.close()
        self._outbox.clear()

    def _sendmsg(self, buffers: Sequence[Buffer]) -> int:
        try:
            return self._socket.sendmsg(buffers)  # type: ignore[arg-type]
        except BlockingIOError:
            return 0
        except OSError as error:
            raise PeerLost(f"the link broke while sending: {error.strerror or error}") from error

    def _drop(self, num_sent: int) -> None:
        while num_sent:
            first = self._outbox[0]
            if num_sent < len(first):
                self._outbox[0] = first[num_sent:]
                return
            num_sent -= len(first)
            self._outbox.popleft()

    def _recv(self) -> int:
        try:
            count = self._socket.recv_into(self._buffer[self._filled :])  # type: ignore[arg-type]
        except BlockingIOError:
            return 0
        except OSError as error:
            raise PeerLost(f"the link broke while receiving: {error.strerror or error}") from error
        if not count:
            raise PeerLost("the other side closed the link")
        return count

    def _next_message(self) -> Message | None:
        if self._header is None:
            if self._filled < HEADER_BYTES:
                return None
            self._header = self._parse()
        size = HEADER_BYTES + self._header.payload_bytes
        if self._filled >= size:
            return self._take(self._header, size)
        if size > len(self._buffer):
            self._grow(size)
        return None

    def _parse(self) -> Header:
        header = parse_header(self._buffer)
        if header.payload_bytes > self.payload_bytes_max:
            raise ProtocolMismatch(
                f"header: payload_bytes: at most {self.payload_bytes_max} expected, got {header.payload_bytes}"
            )
        return header

    def _grow(self, size: int) -> None:
        """Give a long message its own memory, exactly as long as itself."""
        own = np.empty(size, np.uint8)
        own[: self._filled] = self._buffer[: self._filled]
        self._buffer = own

    def _take(self, header: Header, size: int) -> Message:
        self._header = None
        if self._buffer is not self._small:
            payload, self._buffer, self._filled = self._buffer[HEADER_BYTES:], self._small, 0
            return Message(header, payload)
        payload = self._buffer[HEADER_BYTES:size].copy()
        self._filled -= size
        if self._filled:
            self._buffer[: self._filled] = self._buffer[size : size + self._filled].copy()
        return Message(header, payload)


def _num_bytes(buffer: Buffer) -> int:
    return len(buffer) if isinstance(buffer, bytes) else buffer.nbytes


def _view(buffer: Buffer) -> memoryview:
    return memoryview(buffer).cast("B")  # type: ignore[arg-type]
