"""One group after the other: each committed membership has its own, and a lost rank costs only the present one.

    router                       every rank
    Members(epoch, attention) ─► interrupt the group of an older epoch, join the one of this
                              ◄─ GroupLost(epoch), when an exchange failed and no newer epoch was told
    Members(epoch + 1)        ─► ...

A group forms in a thread of its own, so that a newer epoch ends the wait for a rank that will not come.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from moonshard.errors import PeerLost, TransportError
from moonshard.transport.all_to_all.group import Group, release
from moonshard.transport.all_to_all.joining import host_store, join_group

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S, _PAUSE_MAX_S = 0.05, 2.0


class Roster(NamedTuple):
    """Who forms the group of an epoch: every shard and these attention workers, in rank order. None of them: nobody."""

    epoch: int
    attention: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Seat:
    """This process's place. number: of the shard, or of the attention worker. join_s, exchange_s: limits.

    recover_s: how long an attention worker that has rows waits for the next group; 0: a lost group is the end.
    """

    address: str
    num_shards: int
    number: int
    is_shard: bool
    device: torch.device
    join_s: float
    exchange_s: float
    recover_s: float


class Groups(Protocol):
    """Where a dispatcher or endpoint takes its groups from. Owner's thread, `nudge` excepted."""

    recover_s: float

    def next(self, timeout_s: float) -> Group | None:
        """The group to use from now on; None after timeout_s or a nudge. Raises PeerLost when there will be none."""

    def lose(self, group: Group, error: TransportError) -> None:
        """It is of no use any more. Raises `error` when no other will come."""

    def nudge(self) -> None:
        """End the present or next `next`. Any thread."""

    def close(self) -> None: ...


class OneGroup:
    """A group that is made beforehand and has no successor."""

    recover_s = 0.0

    def __init__(self, group: Group) -> None:
        self._group = group

    def next(self, timeout_s: float) -> Group | None:
        return self._group

    def lose(self, group: Group, error: TransportError) -> None:
        release(error)
        raise error

    def nudge(self) -> None:
        pass

    def close(self) -> None:
        self._group.close()


class Meeting:
    """`tell`, `end` and `nudge` from any thread, the rest from the owner's.

    report: called from the owner's thread with (epoch, reason) when a group failed of itself: whoever commits the
    membership must start the next epoch. num_groups: formed so far.
    """

    def __init__(self, seat: Seat, report: Callable[[int, str], None]) -> None:
        """Shard 0 listens from here on. Raises ConfigError or PeerLost when it cannot."""
        self.recover_s = seat.recover_s
        self.num_groups = 0
        self._seat = seat
        self._report = report
        self._instance = secrets.token_hex(8)
        self._changed = threading.Condition()
        self._roster = Roster(0, ())
        self._end = ""
        self._nudged = False
        self._group: Group | None = None
        self._attempt: _Attempt | None = None
        self._tried_epoch = 0
        self._num_failures = 0
        hosts = seat.is_shard and seat.number == 0
        self._store = host_store(seat.address, seat.join_s) if hosts else None

    @property
    def is_whole(self) -> bool:
        """Whether there is a group and no newer epoch."""
        group = self._group
        return group is not None and not group.interruption

    def tell(self, roster: Roster) -> None:
        """What the router has committed. An older epoch changes nothing."""
        with self._changed:
            if roster.epoch <= self._roster.epoch:
                return
            self._roster = roster
            self._changed.notify_all()
            group = self._group
        if group:
            group.interrupt(f"the router has committed epoch {roster.epoch}")

    def end(self, reason: str) -> None:
        """No group from now on: waits raise PeerLost."""
        with self._changed:
            self._end = reason
            self._changed.notify_all()
            group = self._group
        if group:
            group.interrupt(reason)

    def nudge(self) -> None:
        with self._changed:
            self._nudged = True
            self._changed.notify_all()

    def next(self, timeout_s: float) -> Group | None:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                if self._end:
                    raise PeerLost(self._end)
                self._try_newest()
                if group := self._take_formed():
                    return group
                remaining_s = deadline - time.monotonic()
                if self._nudged or remaining_s <= 0:
                    self._nudged = False
                    return None
                self._changed.wait(remaining_s)

    def lose(self, group: Group, error: TransportError) -> None:
        release(error)
        group.close()
        with self._changed:
            self._group = None
            is_news = self._roster.epoch == group.epoch and not self._end
        if not self.recover_s:
            raise error
        if is_news:
            _log.warning("the group of epoch %d is lost: %s", group.epoch, error)
            self._report(group.epoch, str(error))

    def close(self) -> None:
        self.end("the worker ends")
        with self._changed:
            group, self._group = self._group, None
            if self._attempt:
                self._attempt.abandon()
        if group:
            group.close()
        self._store = None

    def _try_newest(self) -> None:
        """Start forming the group of the newest roster, once, if we belong to it."""
        roster, seat = self._roster, self._seat
        if roster.epoch <= self._tried_epoch:
            return
        if self._attempt:
            self._attempt.abandon()
            self._attempt = None
        if not roster.attention or not (seat.is_shard or seat.number in roster.attention):
            return
        self._tried_epoch = roster.epoch
        pause_s = min(_PAUSE_MAX_S, _FIRST_PAUSE_S * 2**self._num_failures)
        self._attempt = _Attempt(seat, self._instance, roster, pause_s, self._changed)

    def _take_formed(self) -> Group | None:
        attempt = self._attempt
        if attempt is None or not attempt.is_over:
            return None
        self._attempt = None
        if attempt.group is None:
            self._num_failures += 1
            _log.warning("no group for epoch %d: %s", attempt.roster.epoch, attempt.error)
            if attempt.error and not (self.recover_s and isinstance(attempt.error, TransportError)):
                raise attempt.error
            self._report(attempt.roster.epoch, str(attempt.error))
            return None
        self._num_failures = 0
        self.num_groups += 1
        self._group = attempt.group
        _log.info("joined the group of epoch %d as rank %d", attempt.roster.epoch, attempt.group.rank)
        return self._group


class _Attempt:
    """Forms one group in a thread of its own. `changed` guards what it found: the group, or the error."""

    def __init__(self, seat: Seat, instance: str, roster: Roster, pause_s: float, changed: threading.Condition) -> None:
        """pause_s: before a failure is told, so that epochs do not race."""
        self.roster = roster
        self.group: Group | None = None
        self.error: BaseException | None = None
        self.is_over = False
        self._seat, self._instance, self._pause_s = seat, instance, pause_s
        self._changed = changed
        self._abandoned = threading.Event()
        threading.Thread(target=self._run, name=f"group-{roster.epoch}", daemon=True).start()

    def abandon(self) -> None:
        """Under `changed`: what it finds is closed."""
        self._abandoned.set()
        if self.group:
            self.group.close()

    def _run(self) -> None:
        group: Group | None = None
        error: BaseException | None = None
        try:
            group = self._join()
        except BaseException as failure:  # noqa: BLE001  raised again, or told, by the owner
            error = failure
            self._abandoned.wait(self._pause_s)
        with self._changed:
            self.group, self.error, self.is_over = group, error, True
            if group and self._abandoned.is_set():
                group.close()
            self._changed.notify_all()

    def _join(self) -> Group:
        seat, attention = self._seat, self.roster.attention
        group = join_group(
            seat.address,
            seat.number if seat.is_shard else seat.num_shards + attention.index(seat.number),
            seat.num_shards + len(attention),
            seat.device,
            seat.join_s,
            exchange_s=seat.exchange_s,
            epoch=self.roster.epoch,
            hosts_store=False,
            instance=self._instance,
        )
        group.attention = attention
        return group
