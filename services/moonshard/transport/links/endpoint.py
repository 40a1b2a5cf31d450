"""The expert side of the direct links: serves rows in arrival order, merging what waits for the same layer.

Shapes: R rows of a batch, D hidden size, K experts per token.
"""

import logging
import secrets
import select
import time
from collections import deque

import torch
from torch import Tensor

from moonshard.errors import PeerLost, ProtocolMismatch, TransportError
from moonshard.kernels import links as kernel_links
from moonshard.transport import wire
from moonshard.transport.contract import ExpertBatch, Segment, TransportStats, WireSpec
from moonshard.transport.links import handshake
from moonshard.transport.links.address import Listener
from moonshard.transport.links.answers import Answers, ExpertTable
from moonshard.transport.links.poller import MESSAGE, make_poller
from moonshard.transport.links.replies import make_replies
from moonshard.transport.links.shape import Shape
from moonshard.transport.links.slab import SlabPool
from moonshard.transport.links.stream import Message, Stream
from moonshard.transport.links.waiting import SourceLink, Waiting
from moonshard.transport.slots import Slots
from moonshard.transport.wire import Kind

_log = logging.getLogger(__name__)
_WAITING_MAX = 16  # messages of one source that may wait before its link is left unread
_LINKS_MAX = 1024


class LinkEndpoint:
    """A listening socket and the links it accepted. A bad link is closed; the others are served on."""

    def __init__(
        self,
        spec: WireSpec,
        shard: int,
        address: str,
        *,
        max_rows: int = 8192,
        timeout_s: float = 30.0,
        slots: Slots | None = None,
    ) -> None:
        """Listen on `address`. max_rows: rows of a message and of a merged batch. timeout_s: limit for a handshake.

        slots: which experts are here; None: the shard's block.
        """
        self.spec = spec
        self.shard = shard
        self._instance = secrets.token_hex(8)
        self.stats = TransportStats()
        self._max_rows = max_rows
        self._timeout_s = timeout_s
        self._slots = slots or Slots(spec, spec.experts_of(shard))
        self._layers = frozenset(spec.moe_layers)
        self._links: dict[int, SourceLink] = {}
        self._waiting: deque[Waiting] = deque()
        self._slabs = SlabPool()
        self._listener = Listener(address)
        self.address = self._listener.address
        shape = Shape(spec, shard, max_rows)
        shape.hold(self._slots)
        self._poller = make_poller(self._listener.socket, shape)
        self._replies = make_replies(shape, spec, shard)
        self._strangers: set[SourceLink] = set()
        self._answers: Answers | None = None
        self._row_bytes = wire.reply_bytes(spec, 1)

    def answer_with(self, table: ExpertTable) -> bool:
        """Let `receive` answer by itself what the native call can; only the rest is returned. False without it."""
        if kernel_links.native_links():
            self._answers = Answers(self.spec, self.shard, table)
        return self._answers is not None

    def receive(self, timeout_s: float) -> ExpertBatch | None:
        started = time.monotonic()
        self._pump(0.0 if self._waiting else timeout_s)
        while not self._waiting:
            remaining_s = started + timeout_s - time.monotonic()
            if remaining_s <= 0:
                return None
            self._pump(remaining_s)
        taken = self._take_layer()
        self.stats.wait_s[taken[0].link.source] += time.monotonic() - started
        return self._merge(taken)

    def reply(self, batch: ExpertBatch, y_RD: Tensor) -> None:
        wanted = sum(waiting.num_sums for waiting in batch.ticket)
        assert y_RD.shape == (wanted, batch.x_RD.shape[1]), f"{tuple(y_RD.shape)} is not {wanted} sums"
        start = 0
        for waiting in batch.ticket:
            self._reply(waiting, y_RD[start : start + waiting.num_sums])
            start += waiting.num_sums

    def close(self) -> None:
        for link in self._links.values():
            link.stream.close()
        self._links.clear()
        self._waiting.clear()
        self._listener.close()

    def _pump(self, timeout_s: float) -> None:
        """Wait for something to happen on any socket and handle all that did."""
        # What waits already goes first.
        answers = None if self._waiting else self._answers
        events = self._poller.wait(timeout_s, answers)
        if answers:
            self._count_answers(answers)
        for fd, event in events:
            link = self._links.get(fd)
            if link is None:
                self._accept_links()
            elif event == MESSAGE:
                self._take_message(link)
            else:
                self._serve(link, event)
        if self._strangers:
            self._drop_silent_strangers()

    def _count_answers(self, answers: Answers) -> None:
        num_batches, num_rows = answers.report()
        self.stats.num_dispatches += num_batches
        self.stats.num_rows += num_rows
        for place, link in enumerate(self._links.values()):
            record, source = link.stream.record, link.source
            if place == answers.plan.cut_link and answers.plan.cut_sent >= 0:
                link.stream.send_rest(answers.plan.cut_sent, *answers.last_message(record))
                self._watch(link)
            if record.sent_bytes:
                self.stats.sent_bytes[source] += record.sent_bytes
                self.stats.received_bytes[source] += record.received_bytes
                self.stats.wait_s[source] += record.waited_ns / 1e9
                record.sent_bytes = record.received_bytes = record.waited_ns = 0

    def _accept_links(self) -> None:
        while connection := self._listener.accept():
            if len(self._links) >= _LINKS_MAX:
                _log.warning("refused a connection: %d links are open", len(self._links))
                connection.close()
                continue
            link = SourceLink(Stream(connection, self._slabs))
            self._links[link.stream.fileno()] = link
            self._strangers.add(link)
            self._poller.add(link.stream)

    def _serve(self, link: SourceLink, event: int) -> None:
        try:
            if event & select.POLLOUT:
                link.stream.flush()
            else:
                for message in link.stream.receive():
                    self._accept(link, message)
            self._watch(link)
        except PeerLost as error:
            self._close_link(
                link, logging.INFO if link.source >= 0 and not link.num_waiting else logging.WARNING, error
            )
        except ProtocolMismatch as error:
            self._turn_away(link, error)

    def _watch(self, link: SourceLink) -> None:
        """A source with unsent replies or many waiting messages is not read: every queue has a limit."""
        self._poller.watch(link.stream, reads=not link.stream.unsent and link.num_waiting < _WAITING_MAX)

    def _take_message(self, link: SourceLink) -> None:
        """A native call has read and checked a DISPATCH."""
        stream, spec = link.stream, self.spec
        record, slab = stream.record, stream.take_slab()
        num_rows = record.num_rows
        ids_RK, weights_RK, x_RD = slab.views.get(num_rows) or slab.dispatch(spec, num_rows)
        header = wire.dispatch_header(spec, link.source, record.step, record.layer, num_rows)
        self._append(Waiting(link, header, ids_RK, weights_RK, x_RD, record.num_sums, slab))

    def _append(self, waiting: Waiting) -> None:
        link = waiting.link
        self._waiting.append(waiting)
        link.num_waiting += 1
        self.stats.received_bytes[link.source] += wire.HEADER_BYTES + waiting.header.payload_bytes
        if link.num_waiting >= _WAITING_MAX:
            self._watch(link)

    def _accept(self, link: SourceLink, message: Message) -> None:
        if link.source < 0:
            self._welcome(link, handshake.read_hello(message, self.spec, self.shard).source)
            return
        header, payload = message
        if header.kind is Kind.ERROR:
            raise PeerLost(handshake.text(payload))
        self._check(link, header)
        ids_RK, weights_RK, x_RD = wire.split_dispatch(payload, self.spec, header.num_rows)
        self._slots.check(header.layer, ids_RK.numpy())
        self._append(Waiting(link, header, ids_RK, weights_RK, x_RD, self.spec.num_sums(ids_RK)))

    def _check(self, link: SourceLink, header: wire.Header) -> None:
        expected = wire.dispatch_header(self.spec, link.source, header.step, header.layer, header.num_rows)
        wire.check_header("dispatch", expected, header)
        if header.layer not in self._layers:
            first, last = min(self._layers), max(self._layers)
            raise ProtocolMismatch(f"dispatch: layer: expected an MoE layer in {first}..{last}, got {header.layer}")
        if not 1 <= header.num_rows <= self._max_rows:
            raise ProtocolMismatch(f"dispatch: num_rows: expected 1..{self._max_rows}, got {header.num_rows}")

    def _welcome(self, link: SourceLink, source: int) -> None:
        for other in [other for other in self._links.values() if other.source == source]:
            self._close_link(other, logging.WARNING, PeerLost("it connected anew"))
        link.source = link.stream.record.source = source
        link.stream.record.native = 1
        self._strangers.discard(link)
        link.stream.payload_bytes_max = max(wire.CONTROL_BYTES_MAX, wire.dispatch_bytes(self.spec, self._max_rows))
        for totals in (self.stats.sent_bytes, self.stats.received_bytes, self.stats.wait_s):
            totals.extend([0] * (source + 1 - len(totals)))
        link.stream.send(*handshake.welcome(self._max_rows, self._instance))
        _log.info("%s joined", link.name)

    def _turn_away(self, link: SourceLink, error: ProtocolMismatch) -> None:
        """Tell the other side why before closing, if it still listens."""
        kind = Kind.ERROR if link.source >= 0 else Kind.REFUSE
        try:
            link.stream.send(*wire.control(kind, str(error).encode(), self.shard))
        except PeerLost:
            _log.debug("%s did not wait for the reason", link.name)
        self._close_link(link, logging.ERROR, error)

    def _close_link(self, link: SourceLink, level: int, error: TransportError) -> None:
        _log.log(level, "shard %d closes the link of %s: %s", self.shard, link.name, error)
        self._poller.remove(link.stream)
        self._strangers.discard(link)
        del self._links[link.stream.fileno()]
        link.stream.close()
        self._waiting = deque(waiting for waiting in self._waiting if waiting.link is not link)

    def _drop_silent_strangers(self) -> None:
        limit = time.monotonic() - self._timeout_s
        for link in [link for link in self._strangers if link.opened_at < limit]:
            self._turn_away(link, ProtocolMismatch(f"handshake: no HELLO within {self._timeout_s:g} s"))

    def _take_layer(self) -> list[Waiting]:
        """The oldest message and the others of its layer, whole, as long as they fit max_rows."""
        if len(self._waiting) == 1:
            self._waiting[0].link.num_waiting = 0
            return [self._waiting.popleft()]
        layer, num_rows = self._waiting[0].header.layer, 0
        taken: list[Waiting] = []
        for waiting in self._waiting:
            if waiting.header.layer != layer:
                continue
            num_rows += waiting.header.num_rows
            if num_rows > self._max_rows:
                break
            taken.append(waiting)
        self._waiting = deque(waiting for waiting in self._waiting if waiting not in taken)
        return [self._release(waiting) for waiting in taken]

    def _release(self, waiting: Waiting) -> Waiting:
        waiting.link.num_waiting -= 1
        if waiting.link.num_waiting == _WAITING_MAX - 1:
            self._watch(waiting.link)
        return waiting

    def _merge(self, taken: list[Waiting]) -> ExpertBatch:
        segments, stop = [], 0
        for waiting in taken:
            start, stop = stop, stop + waiting.header.num_rows
            segments.append(Segment(waiting.link.source, waiting.header.step, start, stop))
        self.stats.num_dispatches += 1
        self.stats.num_rows += stop
        x_RD, ids_RK, weights_RK = taken[0].x_RD, taken[0].ids_RK, taken[0].weights_RK
        if len(taken) > 1:
            x_RD = torch.cat([waiting.x_RD for waiting in taken])
            ids_RK = torch.cat([waiting.ids_RK for waiting in taken])
            weights_RK = torch.cat([waiting.weights_RK for waiting in taken])
        return ExpertBatch(taken[0].header.layer, x_RD, ids_RK, weights_RK, tuple(segments), taken)

    def _reply(self, waiting: Waiting, y_RD: Tensor) -> None:
        link, asked = waiting.link, waiting.header
        stream = link.stream
        if stream.closed:
            _log.warning("shard %d drops a reply for layer %d: %s is gone", self.shard, asked.layer, link.name)
            return
        try:
            self._replies.send(stream, asked, y_RD)
        except PeerLost as error:
            self._close_link(link, logging.WARNING, error)
            return
        self.stats.sent_bytes[link.source] += wire.HEADER_BYTES + len(y_RD) * self._row_bytes
        if stream.unsent:
            self._watch(link)
        elif waiting.slab:
            self._slabs.give(waiting.slab)
