"""The attention side of the direct links. Not thread-safe, `wake`, `update_members` and `give_up` excepted.

Shapes: T rows of a step, R rows that go to one shard, D hidden size, K experts per token.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moonshard.errors import PeerLost, TransportError, TransportTimeout
from moonshard.kernels import links as kernel_links
from moonshard.kernels.links import NOT_TAKEN, State, Status
from moonshard.transport.contract import TransportStats, WireSpec
from moonshard.transport.links.courier import Courier
from moonshard.transport.links.degraded import Degraded
from moonshard.transport.links.dialer import Target
from moonshard.transport.links.elsewhere import Elsewhere
from moonshard.transport.links.handle import LinkHandle, ShardLink
from moonshard.transport.links.patience import Patience, WaitWindow
from moonshard.transport.links.recheck import Recheck
from moonshard.transport.links.sender import route
from moonshard.transport.links.shard_links import ShardLinks
from moonshard.transport.links.stats import LinkStats
from moonshard.transport.links.sums import add_up
from moonshard.transport.links.table_news import TableNews
from moonshard.transport.routing_table import RoutingTable

# A native wait cannot be told that a worker should stop, or that a shard is back: Python takes over after this long.
_NATIVE_WAIT_S = 1.0
_LOOK_AROUND_STEPS = 16  # how often spares are looked after while all goes well


class LinkDispatcher:
    """One link per shard, and spares where shards have replicas. Rows go only to shards that hold one of their experts.

    With a patience that recovers, rows of a lost or slow shard are sent again: to a replica, or to the shard once it is
    back. A shard's sums are taken once, whoever computed them, so that the result has the same bits.
    recovery: what became of it, in numbers, and whom to tell. degraded: what goes on without a lost shard instead.
    recheck: rows that another copy computes as well.
    """

    def __init__(
        self,
        spec: WireSpec,
        source: int,
        addresses: Sequence[str | Target],
        timeout_s: float = 30.0,
        patience: Patience | None = None,
        table: RoutingTable | None = None,
    ) -> None:
        """Connect to one copy of every shard, in shard order; `update_members` tells of further copies.

        timeout_s: for the handshakes, and the patience that does not recover when none is given. table: where experts
        are at the start; None: in contiguous blocks.
        Raises PeerLost, ProtocolMismatch, TransportTimeout.
        """
        assert len(addresses) == spec.num_shards, f"{len(addresses)} addresses for {spec.num_shards} shards"
        self.spec = spec
        self.source = source
        self._patience = patience or Patience(reply_s=timeout_s)
        self._waits = WaitWindow(self._patience)
        self._timeout_s = timeout_s
        self._step = -1
        self._experts = table or RoutingTable(spec)
        self._woken = threading.Event()
        self._links = ShardLinks(spec, source, self._patience, timeout_s, self._woken.set)
        self._table, self.recovery = self._links.table, self._links.recovery
        self.recheck = Recheck(spec)
        self.degraded = Degraded(self._patience.degrade_s, spec.num_shards)
        self.stats: TransportStats = LinkStats(self._table.records)
        self._courier: Courier | None = None
        self._courier_version = -1
        self._carried: LinkHandle | None = None
        self._tables = TableNews()
        self._elsewhere = Elsewhere(spec, self._dispatch, self._await_all)
        try:
            self._links.connect(
                [it if isinstance(it, Target) else Target(shard, 0, it) for shard, it in enumerate(addresses)]
            )
            self._is_calm()
        except BaseException:
            self.close()
            raise

    @property
    def lost_shards(self) -> list[int]:
        """Shards without a link that is up. From any thread."""
        return [link.shard for link in self._table.current if link.error]

    def begin_step(self, num_rows: int) -> None:
        self._step += 1
        self.degraded.rows.clear()
        if self._links.news.waiting or (self._table.has_spares and self._step % _LOOK_AROUND_STEPS == 0):
            self._look_around()
        self._adopt()

    def dispatch(self, layer: int, x_TD: Tensor, topk_ids_TK: Tensor, topk_weights_TK: Tensor) -> LinkHandle:
        table = self._experts if self._links.calm else self._elsewhere.table(self._experts, self.lost_shards)
        handle = LinkHandle(self._step, layer, x_TD, topk_ids_TK, topk_weights_TK, table)
        handle.is_sample = self.recheck.is_due(self.stats.num_dispatches, self._table)
        is_calm = self._is_calm() and not handle.is_sample  # the native calls do not tell the shards' sums apart
        if not (is_calm and self._courier and self._carry(self._courier, handle)):
            self._take_over()
            self._links.calm = False
            self._dispatch(handle)
        self.stats.num_dispatches += 1
        self.stats.num_rows += x_TD.shape[0]
        return handle

    def combine(self, handle: LinkHandle) -> Tensor:
        started = time.monotonic()
        if self._courier and handle is self._carried:
            y_TD = torch.empty(handle.x_TD.shape[0], self.spec.hidden_size)
            limit_s = self._native_limit_s()
            status = self._courier.combine(y_TD, limit_s)
            while status == Status.INTERRUPTED:
                status = self._courier.combine(y_TD, started + limit_s - time.monotonic())
            if status == Status.DONE and self._is_sound(handle, y_TD):
                self._carried = None
                self._waits.add(time.monotonic() - started)
                return y_TD if handle.x_TD.is_cpu else y_TD.to(handle.x_TD.device)
            if status == Status.DONE:
                return self._ask_all_again(handle, started)
        self._take_over()
        return self._combine(handle, started)

    def idle(self, timeout_s: float) -> None:
        self._woken.wait(timeout_s)
        self._woken.clear()
        self._adopt()
        if self._patience.recovers:
            self._look_around()  # a link that broke in quiet times is opened anew before it is needed

    def wake(self) -> None:
        self._woken.set()

    def update_members(self, epoch: int, targets: Sequence[Target]) -> None:
        """The copies of the shards that the router has committed; from any thread. An older epoch changes nothing.

        Links to copies that are not among them end.
        """
        self._links.news.tell_members(epoch, targets)
        self._woken.set()

    def update_table(self, table: RoutingTable, adopted: Callable[[], None]) -> None:
        """Rows go by this table from the next step on; from any thread. adopted: called, by the dispatcher's own
        thread, once no rows are on their way by an older one."""
        self._tables.tell(table, adopted)
        self._woken.set()

    def give_up(self, reason: str) -> None:
        """End the waits for shards: `combine` raises PeerLost. From any thread."""
        self._links.news.tell_end(reason)
        self._woken.set()

    def close(self) -> None:
        self._courier = None
        self._links.close()
        self._woken.set()

    def _adopt(self) -> None:
        """Between two steps."""
        if told := self._tables.take():
            self._experts, self._courier_version, self._links.calm = told.table, -1, False
            self.recheck.settle()
            self.recheck.forget()
            for adopted in told.adopted:
                adopted()

    def _look_around(self) -> None:
        """What has come of itself. Replies that a native call waits for are not to be read here."""
        if self._carried is None:
            self._links.pump(0.0)
            self.recheck.settle()

    def _is_calm(self) -> bool:
        """Whether nothing is on its way and no link is lost: the native calls' case."""
        if not self._links.calm:
            self._links.calm = not any(
                link.error or link.pending or link.stream.unsent or link.stream.record.filled
                for link in self._table.current
            )
            if self._links.calm and self._courier_version != self._table.version:
                self._hire()
        return self._links.calm and self._carried is None

    def _hire(self) -> None:
        """A courier for the links that are in use now."""
        self._courier_version = self._table.version
        self._courier = None
        if library := kernel_links.native_links():
            streams = [link.stream for link in self._table.current]
            self._courier = Courier(library, self.spec, self.source, streams, self._experts)

    def _native_limit_s(self) -> float:
        if not self._patience.recovers:
            return self._patience.reply_s
        return min(_NATIVE_WAIT_S, self._patience.reply_s, self._slow_after_s())

    def _slow_after_s(self) -> float:
        return self._waits.hedge_s if self._table.has_spares else self._patience.reply_s

    def _is_sound(self, handle: LinkHandle, y_TD: Tensor) -> bool:
        """Whether sums of finite rows are finite. One number tells in most cases: NaN and infinity survive a sum."""
        if not self._patience.recovers or self.recovery.trusts_everyone or math.isfinite(y_TD.sum().item()):
            return True
        return bool(y_TD.isfinite().all()) or not handle.x_TD.isfinite().all()

    def _ask_all_again(self, handle: LinkHandle, started: float) -> Tensor:
        """The native call added the sums, so whose they were must be found out."""
        self._carried, self._links.calm = None, False
        self._dispatch(handle)
        return self._combine(handle, started)

    def _carry(self, courier: Courier, handle: LinkHandle) -> bool:
        """Dispatch natively. False when nothing was sent."""
        rows = (handle.x_TD, handle.topk_ids_TK, handle.topk_weights_TK)
        status = courier.dispatch(handle.step, handle.layer, rows, self._room_s())
        if status == Status.REFUSED:
            return False
        self._carried = handle
        if status != Status.DONE:
            self._take_over()
        return True

    def _room_s(self) -> float:
        """How long a shard may take to make room for rows."""
        return self._slow_after_s() if self._patience.recovers else self._timeout_s

    def _take_over(self) -> None:
        """Go on in Python with the handle that the native calls have on its way, whatever became of it."""
        handle, self._carried = self._carried, None
        if handle is None:
            return
        self._links.calm = False
        handle.routes = route(handle, self.spec)
        for shard in handle.routes:
            link = self._table.current[shard]
            record = link.stream.record
            link.expect_reply(handle)
            broken, cut, record.error, record.num_unsent = record.error, record.num_unsent, 0, 0
            record.state = State.QUIET
            if broken == NOT_TAKEN:
                where = handle.where([shard])
                self._links.lose(link, TransportTimeout(f"{where}: rows not taken within {self._room_s():g} s"))
            elif broken:
                self._links.lose(link, PeerLost(f"the link broke while sending: {os.strerror(broken)}"))
            else:
                self._links.serve(link, 0)
                if cut and not link.error:
                    self._links.lose(link, PeerLost("the other side closed the link"))

    def _dispatch(self, handle: LinkHandle) -> None:
        handle.routes = route(handle, self.spec)
        self._links.send([self._table.current[shard] for shard in handle.routes], handle)
        self._send_the_rest(handle)

    def _send_the_rest(self, handle: LinkHandle) -> None:
        """Wait for room in full sockets, taking replies meanwhile: a shard that is sending to us makes no room."""
        deadline = time.monotonic() + self._room_s()
        while unsent := [link for links in handle.carriers.values() for link in links if link.stream.unsent]:
            self._check_end(handle, [link.shard for link in unsent])
            for link in unsent:
                self._table.watch_for_room(link)
            if not self._links.pump(deadline):
                for link in unsent:
                    where = handle.where([link.shard])
                    self._links.lose(link, TransportTimeout(f"{where}: rows not taken within {self._room_s():g} s"))

    def _combine(self, handle: LinkHandle, started: float) -> Tensor:
        self._links.wait_started = started
        try:
            self._await_all(handle, started)
        except TransportError:
            handle.abandoned = True
            raise
        finally:
            self._links.wait_started = None
        self.recovery.combined(handle, time.monotonic() - started)
        if handle.is_sample:
            self.recheck.ask(handle, self.stats.num_dispatches, self._table, self._send_again)
        return add_up(handle, self.spec)

    def _await_all(self, handle: LinkHandle, started: float) -> None:
        while missing := handle.missing:
            looks = [self._see_to(handle, shard, started) for shard in missing]
            self._links.pump(min(looks))

    def _see_to(self, handle: LinkHandle, shard: int, started: float) -> float:
        """Do what a shard that has not answered needs now; when to look again."""
        self._check_end(handle, [shard])
        carriers = tuple(link for link in handle.carriers.get(shard, ()) if not link.error)
        if not carriers:
            return self._see_to_lost(handle, shard, started)
        asked_s = max(started, handle.asked_s[shard])
        now = time.monotonic()
        spare = self._table.spare_of(shard, carriers)
        is_slow = spare and now - asked_s >= self._waits.hedge_s
        if spare and is_slow and self.recovery.budget.take(self.stats.num_dispatches, now):
            return self._hedge(handle, carriers, spare)
        if now - asked_s >= self._patience.reply_s:
            return self._time_out(handle, shard, carriers)
        if is_slow:
            return self.recovery.budget.again_s()
        return asked_s + (self._waits.hedge_s if spare else self._patience.reply_s)

    def _check_end(self, handle: LinkHandle, shards: Sequence[int]) -> None:
        if self._links.news.end:
            raise PeerLost(f"{handle.where(shards)}: {self._links.news.end}")

    def _see_to_lost(self, handle: LinkHandle, shard: int, started: float) -> float:
        link, now = self._table.current[shard], time.monotonic()
        handle.disturbed = True
        if not link.error:
            self.recovery.num_redispatches += 1
            return self._send_again(handle, link)
        if self._elsewhere.answer(handle, shard, self.lost_shards, started):
            self.recovery.num_redispatches += 1
            return time.monotonic()
        if now >= (without_s := self.degraded.begins_s(link, self.lost_shards)):
            self.degraded.leave_out(handle, shard, self.spec)
            return now
        if now - started >= self._patience.failover_s:
            raise type(link.error)(f"{handle.where([shard])}: {link.error}")
        return min(without_s, started + self._patience.failover_s)

    def _hedge(self, handle: LinkHandle, slow: Sequence[ShardLink], spare: ShardLink) -> float:
        """Rows go to another copy as well; the first answer counts, and the quicker link stays in use."""
        self.recovery.num_hedges += 1
        handle.disturbed = True
        for link in slow:
            self._links.suspect(
                link, f"no answer for layer {handle.layer} within {self._waits.hedge_s:.3f} s", is_wrong=False
            )
        if self._table.current[spare.shard] in slow:
            self._table.use(spare)
        return self._send_again(handle, spare)

    def _send_again(self, handle: LinkHandle, link: ShardLink) -> float:
        self._links.send([link], handle)
        if not link.error:
            self._table.watch_for_room(link)
        return time.monotonic()

    def _time_out(self, handle: LinkHandle, shard: int, carriers: Sequence[ShardLink]) -> float:
        words = f"{handle.where([shard])}: no reply within {self._patience.reply_s:g} s"
        if not self._patience.recovers:
            missing = handle.missing
            raise TransportTimeout(f"{handle.where(missing)}: no reply within {self._patience.reply_s:g} s")
        for link in carriers:
            self._links.lose(link, TransportTimeout(words))
        return time.monotonic()
