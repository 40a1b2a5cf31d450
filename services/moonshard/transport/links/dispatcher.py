"""The attention side of the direct links. Not thread-safe, `wake` excepted.

Shapes: T rows of a step, R rows that go to one shard, D hidden size, K experts per token.
"""

import math
import os
import select
import threading
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moonshard.errors import PeerLost, ProtocolMismatch, TransportError, TransportTimeout
from moonshard.kernels import links as kernel_links
from moonshard.kernels.links import NOT_TAKEN, LinkRecord, State, Status
from moonshard.transport import wire
from moonshard.transport.contract import TransportStats, WireSpec, sum_in_shard_order
from moonshard.transport.links import address, handshake
from moonshard.transport.links.courier import Courier
from moonshard.transport.links.handle import LinkHandle, ShardLink
from moonshard.transport.links.routing import ShardRows, split_by_shard
from moonshard.transport.links.stats import LinkStats
from moonshard.transport.links.stream import Message, Stream
from moonshard.transport.wire import Kind


class LinkDispatcher:
    """One link per shard. Rows go only to shards that hold one of their experts."""

    def __init__(self, spec: WireSpec, source: int, addresses: Sequence[str], timeout_s: float = 30.0) -> None:
        """Connect to every shard. `addresses` in shard order. Raises PeerLost, ProtocolMismatch, TransportTimeout."""
        assert len(addresses) == spec.num_shards, f"{len(addresses)} addresses for {spec.num_shards} shards"
        self.spec = spec
        self.source = source
        self._records: list[LinkRecord] = []
        self.stats: TransportStats = LinkStats(self._records)
        self._timeout_s = timeout_s
        self._step = -1
        self._woken = threading.Event()
        self._poll = select.poll()
        self._links: list[ShardLink] = []
        self._by_fd: dict[int, ShardLink] = {}
        self._wait_started: float | None = None
        self._courier: Courier | None = None
        self._carried: LinkHandle | None = None
        self._calm = True
        try:
            self._connect(addresses)
            if library := kernel_links.native_links():
                self._courier = Courier(library, spec, source, [link.stream for link in self._links])
        except BaseException:
            self.close()
            raise

    def begin_step(self, num_rows: int) -> None:
        self._step += 1

    def dispatch(self, layer: int, x_TD: Tensor, topk_ids_TK: Tensor, topk_weights_TK: Tensor) -> LinkHandle:
        handle = LinkHandle(self._step, layer, x_TD, topk_ids_TK, topk_weights_TK)
        if not (self._courier and self._is_calm() and self._carry(self._courier, handle)):
            self._take_over()
            self._calm = False
            self._dispatch(handle)
        self.stats.num_dispatches += 1
        self.stats.num_rows += x_TD.shape[0]
        return handle

    def combine(self, handle: LinkHandle) -> Tensor:
        started = time.monotonic()
        if self._courier and handle is self._carried:
            y_TD = torch.empty(handle.x_TD.shape[0], self.spec.hidden_size)
            status = self._courier.combine(y_TD, self._timeout_s)
            while status == Status.INTERRUPTED:
                status = self._courier.combine(y_TD, started + self._timeout_s - time.monotonic())
            if status == Status.DONE:
                self._carried = None
                return y_TD if handle.x_TD.is_cpu else y_TD.to(handle.x_TD.device)
        self._take_over()
        return self._combine(handle, started)

    def idle(self, timeout_s: float) -> None:
        self._woken.wait(timeout_s)
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        self._courier = None
        for link in self._links:
            link.stream.close()
        self._woken.set()

    def _is_calm(self) -> bool:
        """Whether nothing is on its way and no link is lost: the native calls' case."""
        if not self._calm:
            self._calm = not any(
                link.error or link.pending or link.stream.unsent or link.stream.record.filled for link in self._links
            )
        return self._calm and self._carried is None

    def _carry(self, courier: Courier, handle: LinkHandle) -> bool:
        """Dispatch natively. False when nothing was sent."""
        rows = (handle.x_TD, handle.topk_ids_TK, handle.topk_weights_TK)
        status = courier.dispatch(handle.step, handle.layer, rows, self._timeout_s)
        if status == Status.REFUSED:
            return False
        self._carried = handle
        if status != Status.DONE:
            self._take_over()
        return True

    def _take_over(self) -> None:
        """Go on in Python with the handle that the native calls have on its way, whatever became of it."""
        handle, self._carried = self._carried, None
        if handle is None:
            return
        self._calm = False
        handle.routes = self._route(handle)
        for shard in handle.routes:
            link = self._links[shard]
            record = link.stream.record
            link.expect_reply(handle)
            broken, cut, record.error, record.num_unsent = record.error, record.num_unsent, 0, 0
            record.state = State.QUIET
            if broken == NOT_TAKEN:
                where = handle.where([shard])
                self._lose(link, TransportTimeout(f"{where}: rows not taken within {self._timeout_s:g} s"))
            elif broken:
                self._lose(link, PeerLost(f"the link broke while sending: {os.strerror(broken)}"))
            else:
                self._serve(link, 0)
                if cut and not link.error:
                    self._lose(link, PeerLost("the other side closed the link"))

    def _route(self, handle: LinkHandle) -> dict[int, ShardRows]:
        # CUDA rows take the copies here and below (`.cpu()`); this has never run on a CUDA device.
        ids_TK = handle.topk_ids_TK.to("cpu", torch.int32).contiguous().numpy()
        return {route.shard: route for route in split_by_shard(ids_TK, self.spec)}

    def _dispatch(self, handle: LinkHandle) -> None:
        handle.routes = self._route(handle)
        weights_TK = handle.topk_weights_TK.detach().to("cpu", torch.float32).contiguous().numpy()
        rows_TB = wire.rows_to_bytes(handle.x_TD.to("cpu", self.spec.row_dtype).contiguous())
        for shard in handle.routes:
            self._send_rows(self._links[shard], handle, rows_TB, weights_TK)
        self._send_the_rest(handle)

    def _combine(self, handle: LinkHandle, started: float) -> Tensor:
        self._wait_started = started
        deadline = started + self._timeout_s
        try:
            while missing := handle.missing:
                self._raise_lost(handle, missing)
                if not self._pump(deadline):
                    raise TransportTimeout(f"{handle.where(missing)}: no reply within {self._timeout_s:g} s")
        except TransportError:
            handle.abandoned = True
            raise
        finally:
            self._wait_started = None
        return self._sum(handle)

    def _connect(self, addresses: Sequence[str]) -> None:
        deadline = time.monotonic() + self._timeout_s
        for shard, target in enumerate(addresses):
            try:
                link = ShardLink(shard, Stream(address.connect(target, self._timeout_s)))
            except PeerLost as error:
                raise PeerLost(f"shard {shard}: {error}") from error
            self._links.append(link)
            self._records.append(link.stream.record)
            self._by_fd[link.stream.fileno()] = link
            self._poll.register(link.stream, select.POLLIN)
            link.stream.send(*handshake.hello(self.spec, self.source, shard))
        while strangers := [link.shard for link in self._links if not link.max_rows]:
            if not self._pump(deadline):
                raise TransportTimeout(f"shards {strangers}: no answer to the handshake within {self._timeout_s:g} s")
            self._raise_refused()

    def _raise_refused(self) -> None:
        for link in self._links:
            if link.error:
                raise type(link.error)(f"shard {link.shard}: {link.error}")

    def _send_rows(
        self,
        link: ShardLink,
        handle: LinkHandle,
        rows_TB: wire.Bytes,
        weights_TK: NDArray[np.float32],
    ) -> None:
        _, rows_R, ids_RK = handle.routes[link.shard]
        if link.error:
            return
        if len(ids_RK) > link.max_rows:
            raise ProtocolMismatch(f"shard {link.shard}: at most {link.max_rows} rows a message, got {len(ids_RK)}")
        header = handle.headers.get(len(ids_RK)) or self._make_header(handle, len(ids_RK))
        if rows_R is not None:
            rows_TB, weights_TK = rows_TB[rows_R], weights_TK[rows_R]
        link.expect_reply(handle)
        try:
            link.stream.send(header, ids_RK, weights_TK, rows_TB)
        except PeerLost as error:
            self._lose(link, error)
            return
        link.stream.record.sent_bytes += wire.HEADER_BYTES + wire.dispatch_bytes(self.spec, len(ids_RK))

    def _make_header(self, handle: LinkHandle, num_rows: int) -> bytes:
        """Shards that get equally many rows get the same header."""
        header = wire.dispatch_header(self.spec, self.source, handle.step, handle.layer, num_rows)
        handle.headers[num_rows] = wire.pack_header(header)
        return handle.headers[num_rows]

    def _send_the_rest(self, handle: LinkHandle) -> None:
        """Wait for room in full sockets, taking replies meanwhile: a shard that is sending to us makes no room."""
        deadline = time.monotonic() + self._timeout_s
        while unsent := [link for link in self._links if link.stream.unsent]:
            for link in unsent:
                self._poll.modify(link.stream, select.POLLIN | select.POLLOUT)
            if not self._pump(deadline):
                for link in unsent:
                    where = handle.where([link.shard])
                    self._lose(link, TransportTimeout(f"{where}: rows not taken within {self._timeout_s:g} s"))

    def _pump(self, deadline: float) -> bool:
        """Wait until something happens on a link and handle it. False when the deadline passed first."""
        remaining_ms = max(0, math.ceil((deadline - time.monotonic()) * 1000))
        events = self._poll.poll(remaining_ms)
        for fd, event in events:
            if link := self._by_fd.get(fd):
                self._serve(link, event)
        return bool(events)

    def _serve(self, link: ShardLink, event: int) -> None:
        try:
            messages = link.stream.receive() if event & ~select.POLLOUT else link.stream.messages()
            for message in messages:
                self._accept(link, message)
            if event & select.POLLOUT:
                link.stream.flush()
                if not link.stream.unsent:
                    self._poll.modify(link.stream, select.POLLIN)
        except TransportError as error:
            self._lose(link, error)

    def _accept(self, link: ShardLink, message: Message) -> None:
        header, payload = message
        if not link.max_rows:
            link.max_rows = link.stream.record.max_rows = handshake.read_answer(message)
            link.stream.payload_bytes_max = max(wire.CONTROL_BYTES_MAX, wire.reply_bytes(self.spec, link.max_rows))
            return
        if header.kind is Kind.ERROR:
            raise ProtocolMismatch(f"the shard closed the link: {handshake.text(payload)}")
        wire.expect("reply", "kind", Kind.REPLY.name, header.kind.name)
        self._accept_reply(link, header, payload)

    def _accept_reply(self, link: ShardLink, header: wire.Header, payload: wire.Bytes) -> None:
        handle = link.take_pending(header.step, header.layer)
        num_rows = handle.num_rows_of(link.shard)
        expected = wire.reply_header(self.spec, link.shard, handle.step, handle.layer, num_rows)
        wire.check_header("reply", expected, header)
        handle.sums[link.shard] = wire.bytes_to_rows(payload, self.spec, num_rows)
        link.stream.record.received_bytes += wire.HEADER_BYTES + header.payload_bytes
        if self._wait_started is not None and not handle.abandoned:
            link.stream.record.waited_ns += int((time.monotonic() - self._wait_started) * 1e9)

    def _lose(self, link: ShardLink, error: TransportError) -> None:
        """Close one link; whoever waits for it learns from `combine`, in the shard's last words if there are any."""
        self._calm = False
        link.error = link.last_words(error) if isinstance(error, PeerLost) else error
        if not link.stream.closed:
            self._poll.unregister(link.stream)
            del self._by_fd[link.stream.fileno()]
            link.stream.close()
        link.pending.clear()

    def _raise_lost(self, handle: LinkHandle, missing: Sequence[int]) -> None:
        for shard in missing:
            if error := self._links[shard].error:
                raise type(error)(f"{handle.where([shard])}: {error}")

    def _sum(self, handle: LinkHandle) -> Tensor:
        parts = [
            (None if route.rows_R is None else torch.from_numpy(route.rows_R), handle.sums[shard])
            for shard, route in handle.routes.items()
        ]
        y_TD = sum_in_shard_order(parts, handle.x_TD.shape[0], self.spec.hidden_size)
        return y_TD.to(handle.x_TD.device)
