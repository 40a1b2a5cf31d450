"""The links of a dispatcher while it waits: what comes over them, who is lost, who is dialled again.

Not thread-safe, its `news` excepted. It does not know of native calls, nor of what a handle still needs.
"""

import math
import select
import time
from collections.abc import Callable, Sequence

from torch import Tensor

from moonshard.errors import PeerLost, ProtocolMismatch, TransportError
from moonshard.transport import wire
from moonshard.transport.contract import WireSpec
from moonshard.transport.links import handshake
from moonshard.transport.links.dialer import Dialer, Target, open_link
from moonshard.transport.links.handle import LinkHandle, ShardLink
from moonshard.transport.links.news import News
from moonshard.transport.links.patience import Patience
from moonshard.transport.links.recovery import Recovery
from moonshard.transport.links.sender import RowSender
from moonshard.transport.links.stream import Message
from moonshard.transport.links.table import LinkTable
from moonshard.transport.wire import Kind

_TO_LEAVE_S = 0.25  # for a process that was found wrong, before it is dialled again


class ShardLinks:
    """calm: whether nothing has changed since the owner last looked; the owner sets it. wait_started: of the combine
    that waits now, for the totals. rang: called from other threads when something was told."""

    def __init__(
        self, spec: WireSpec, source: int, patience: Patience, timeout_s: float, rang: Callable[[], None]
    ) -> None:
        """timeout_s: of handshakes."""
        self.spec = spec
        self.source = source
        self.table = LinkTable()
        self.recovery = Recovery()
        self.calm = False
        self.wait_started: float | None = None
        self.news = News()
        self._patience = patience
        self._timeout_s = timeout_s
        self._rang = rang
        self._sender = RowSender(spec, source)
        self._dialer = Dialer(spec, source, timeout_s, self._delivered)
        self._targets: dict[tuple[int, int], Target] = {}
        self.table.poll.register(self.news, select.POLLIN)

    def close(self) -> None:
        self._dialer.close()
        for link in self.table:
            link.stream.close()
        self.news.close()

    def send(self, links: Sequence[ShardLink], handle: LinkHandle) -> None:
        """To each link that is up the rows of the handle that its shard serves."""
        for link, error in self._sender.send(links, handle):
            self.lose(link, error)

    def connect(self, targets: Sequence[Target]) -> None:
        """One after the other, in shard order. Raises PeerLost, ProtocolMismatch, TransportTimeout."""
        deadline = time.monotonic() + self._timeout_s
        self._targets = {(target.shard, target.replica): target for target in targets}
        for target in targets:
            self.table.add(open_link(self.spec, self.source, target, max(0.001, deadline - time.monotonic())))

    def pump(self, deadline: float) -> bool:
        """Wait until something happens on a link and handle it. False when the deadline passed first."""
        remaining_ms = max(0, math.ceil((deadline - time.monotonic()) * 1000))
        events = self.table.poll.poll(remaining_ms)
        for fd, event in events:
            if link := self.table.of_descriptor(fd):
                self.serve(link, event)
            elif fd == self.news.fileno():
                self._take_news()
        return bool(events)

    def serve(self, link: ShardLink, event: int) -> None:
        try:
            messages = link.stream.receive() if event & ~select.POLLOUT else link.stream.messages()
            for message in messages:
                self._accept(link, message)
            if event & select.POLLOUT:
                link.stream.flush()
                self.table.watch_for_room(link)
        except TransportError as error:
            self.lose(link, error)

    def lose(self, link: ShardLink, error: TransportError) -> None:
        """Close one link; `combine` sends its rows elsewhere, or says so in the shard's last words if there are any."""
        if link.error:
            return
        self.calm = False
        words = link.last_words(error) if isinstance(error, PeerLost) else error
        is_wrong = isinstance(words, ProtocolMismatch)
        if self._patience.recovers and not isinstance(words, PeerLost):
            self.suspect(link, str(words), is_wrong)
        self.table.lose(link, words)
        if self._patience.recovers and (target := self._target_of(link)):
            self._dialer.dial(target, _TO_LEAVE_S if is_wrong else 0.0)

    def suspect(self, link: ShardLink, reason: str, is_wrong: bool) -> None:
        self.recovery.suspect(link.shard, link.replica, reason, is_wrong)

    def _accept(self, link: ShardLink, message: Message) -> None:
        header, payload = message
        if header.kind is Kind.ERROR:
            raise ProtocolMismatch(f"the shard closed the link: {handshake.text(payload)}")
        wire.expect("reply", "kind", Kind.REPLY.name, header.kind.name)
        self._accept_reply(link, header, payload)

    def _accept_reply(self, link: ShardLink, header: wire.Header, payload: wire.Bytes) -> None:
        handle = link.take_pending(header.step, header.layer)
        num_sums = handle.num_sums_of(link.shard)
        expected = wire.reply_header(self.spec, link.shard, handle.step, handle.layer, num_sums)
        wire.check_header("reply", expected, header)
        sums = wire.bytes_to_rows(payload, self.spec, num_sums)
        link.stream.record.received_bytes += wire.HEADER_BYTES + header.payload_bytes
        if link.shard in handle.sums:
            return  # another copy was quicker
        self._doubt(link, handle, sums)
        handle.sums[link.shard] = sums
        if self.wait_started is not None and not handle.abandoned:
            link.stream.record.waited_ns += int((time.monotonic() - self.wait_started) * 1e9)

    def _doubt(self, link: ShardLink, handle: LinkHandle, sums: Tensor) -> None:
        """Raise ProtocolMismatch for sums of finite rows that are not finite, unless two processes say the same."""
        if not self._patience.recovers or self.recovery.trusts_everyone or bool(sums.isfinite().all()):
            return
        if not handle.x_TD.isfinite().all():
            return
        if handle.doubted.get(link.shard, link.instance) != link.instance:
            self.recovery.believe(f"{handle.where([link.shard])}: sums are not finite twice over")
            return
        handle.doubted[link.shard] = link.instance
        raise ProtocolMismatch(f"{handle.where([link.shard])}: sums of finite rows are not finite")

    def _take_news(self) -> None:
        self.news.silence()
        if targets := self.news.members():
            self._targets = {(target.shard, target.replica): target for target in targets}
            for link in self.table:
                if self._target_of(link) is None:
                    self.lose(link, PeerLost("the router has committed its loss"))
            self._dial_absent()
        for link in self.news.links():
            if self._target_of(link) is None or any(it.is_copy(link) for it in self.table):
                link.stream.close()
            else:
                self.calm = False
                self.table.add(link)

    def _target_of(self, link: ShardLink) -> Target | None:
        target = self._targets.get((link.shard, link.replica))
        return target if target and target.address == link.address else None

    def _dial_absent(self) -> None:
        present = {(link.shard, link.replica) for link in self.table}
        for key, target in self._targets.items():
            if key not in present:
                self._dialer.dial(target)

    def _delivered(self, link: ShardLink) -> None:
        """From a dialer's thread."""
        self.news.tell_link(link)
        self._rang()
