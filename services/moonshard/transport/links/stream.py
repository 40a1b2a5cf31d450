"""One non-blocking stream socket that carries whole messages both ways. It never waits; its owner polls.

Its state lies in a record that the native calls share: each side goes on where the other stopped, between messages or
in the middle of one.
"""

import socket
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moonshard.errors import PeerLost, ProtocolMismatch
from moonshard.kernels.links import LinkRecord
from moonshard.transport.links.slab import SMALL_BYTES, Slab, SlabPool
from moonshard.transport.wire import CONTROL_BYTES_MAX, HEADER_BYTES, Bytes, Header, parse_header

Buffer = bytes | memoryview | NDArray[Any]
"""Contiguous memory. NumPy before 2.3 does not tell type checkers that its arrays are buffers, hence the ignores."""

_BUFFERS_PER_CALL = 64


class Message(NamedTuple):
    """payload: memory of its own, not touched by later reads."""

    header: Header
    payload: Bytes


class Stream:
    """Messages up to SMALL_BYTES usually take one recv; a longer one gets its own memory."""

    def __init__(
        self, connection: socket.socket, slabs: SlabPool | None = None, payload_bytes_max: int = CONTROL_BYTES_MAX
    ) -> None:
        connection.setblocking(False)
        self.payload_bytes_max = payload_bytes_max
        self.record = LinkRecord(fd=connection.fileno(), reads=1)
        self._socket = connection
        self._slabs = slabs or SlabPool()
        self._outbox: deque[memoryview] = deque()
        self._use(self._slabs.take())

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
            self.send_rest(sent, *buffers)
            self.flush()

    def send_rest(self, num_sent: int, *buffers: Buffer) -> None:
        """`flush` sends these buffers, of which a native call has sent the first bytes."""
        self._outbox.extend(_view(buffer) for buffer in buffers)
        self._drop(num_sent)
        self._publish()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it. Raises PeerLost."""
        if self._outbox:
            self._drop(len(self._outbox[0]) - self.record.num_unsent)
        while self._outbox and (sent := self._sendmsg(tuple(self._outbox)[:_BUFFERS_PER_CALL])):
            self._drop(sent)
        self._publish()

    def receive(self) -> list[Message]:
        """The messages that one recv completes. Raises PeerLost and ProtocolMismatch."""
        self.record.filled += self._recv()
        return self.messages()

    def messages(self) -> list[Message]:
        """The messages that have been read whole. Raises ProtocolMismatch."""
        messages = []
        while (message := self._next_message()) is not None:
            messages.append(message)
        return messages

    def reserve(self, num_bytes: int) -> None:
        """Make room for a message of that size. Between messages only."""
        assert not self.record.filled, "a message is arriving"
        if self._slab.num_bytes < num_bytes:
            self._use(Slab(num_bytes))

    def shrink(self, num_bytes: int) -> None:
        """Give up memory beyond num_bytes. Between messages only."""
        if self._slab.num_bytes > num_bytes and not self.record.filled:
            self._use(self._slabs.take())

    def take_slab(self) -> Slab:
        """The memory with the message that a native call has read into it."""
        slab, record = self._slab, self.record
        record.filled = record.state = 0
        self._use(self._slabs.take())
        return slab

    def close(self) -> None:
        self._socket.close()
        self._outbox.clear()
        # The number may soon be somebody else's.
        self.record.fd, self.record.num_unsent = -1, 0

    def _use(self, slab: Slab) -> None:
        self._slab = slab
        self.record.buffer, self.record.capacity = slab.address, slab.num_bytes

    def _publish(self) -> None:
        """Tell the native calls what to send when there is room."""
        front = np.frombuffer(self._outbox[0], np.uint8) if self._outbox else None
        self.record.unsent = None if front is None else front.ctypes.data
        self.record.num_unsent = 0 if front is None else front.nbytes

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
        free = self._slab.array[self.record.filled :]
        if not len(free):
            return 0
        try:
            count = self._socket.recv_into(free)  # type: ignore[arg-type]
        except BlockingIOError:
            return 0
        except OSError as error:
            raise PeerLost(f"the link broke while receiving: {error.strerror or error}") from error
        if not count:
            raise PeerLost("the other side closed the link")
        return count

    def _next_message(self) -> Message | None:
        filled = self.record.filled
        if filled < HEADER_BYTES:
            return None
        # Parsed anew when more has come: a native call may have finished the message in the meantime.
        header = self._parse()
        size = HEADER_BYTES + header.payload_bytes
        if filled >= size:
            return self._take(header, size)
        if size > self._slab.num_bytes:
            self._move(self._slabs.take(size), 0)
        return None

    def _parse(self) -> Header:
        header = parse_header(self._slab.array)
        if header.payload_bytes > self.payload_bytes_max:
            raise ProtocolMismatch(
                f"header: payload_bytes: at most {self.payload_bytes_max} expected, got {header.payload_bytes}"
            )
        return header

    def _move(self, slab: Slab, start: int) -> None:
        """Go on in other memory with what was read from `start` on."""
        rest = self._slab.array[start : self.record.filled]
        slab.array[: len(rest)] = rest if slab is not self._slab else rest.copy()
        self.record.filled = len(rest)
        self._use(slab)

    def _take(self, header: Header, size: int) -> Message:
        own = size > SMALL_BYTES and self.record.filled == size
        payload = self._slab.array[HEADER_BYTES:size]
        message = Message(header, payload if own else payload.copy())
        outgrown = self._slab.num_bytes > SMALL_BYTES and self.record.filled - size <= SMALL_BYTES
        self._move(self._slabs.take() if outgrown else self._slab, size)
        return message


def _num_bytes(buffer: Buffer) -> int:
    return len(buffer) if isinstance(buffer, bytes) else buffer.nbytes


def _view(buffer: Buffer) -> memoryview:
    return memoryview(buffer).cast("B")  # type: ignore[arg-type]
