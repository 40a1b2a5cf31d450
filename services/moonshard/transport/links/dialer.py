"""Opening links: the connection and the handshake, once, or again and again in the background until it succeeds."""

import logging
import math
import select
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from moonshard.errors import ConfigError, PeerLost, TransportError, TransportTimeout
from moonshard.transport import wire
from moonshard.transport.contract import WireSpec
from moonshard.transport.links import address, handshake
from moonshard.transport.links.handle import ShardLink
from moonshard.transport.links.stream import Message, Stream

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S, _PAUSE_MAX_S = 0.02, 0.5


class Target(NamedTuple):
    """One copy of a shard and where it listens."""

    shard: int
    replica: int
    address: str


def open_link(spec: WireSpec, source: int, target: Target, timeout_s: float) -> ShardLink:
    """A welcomed link. Raises PeerLost, ProtocolMismatch or TransportTimeout, naming the shard."""
    deadline = time.monotonic() + timeout_s
    try:
        link = ShardLink(target.shard, Stream(address.connect(target.address, timeout_s)), target.replica)
    except PeerLost as error:
        raise PeerLost(f"shard {target.shard}: {error}") from error
    link.address = target.address
    try:
        link.stream.send(*handshake.hello(spec, source, target.shard))
        _welcome(link, spec, _first_message(link, deadline, timeout_s))
    except TransportTimeout:
        link.stream.close()
        raise
    except TransportError as error:
        reason = link.last_words(error) if isinstance(error, PeerLost) else error
        link.stream.close()
        raise type(reason)(f"shard {target.shard}: {reason}") from error
    return link


def _first_message(link: ShardLink, deadline: float, timeout_s: float) -> Message:
    poll = select.poll()
    poll.register(link.stream, select.POLLIN)
    while True:
        if not poll.poll(max(0, math.ceil((deadline - time.monotonic()) * 1000))):
            raise TransportTimeout(f"shards [{link.shard}]: no answer to the handshake within {timeout_s:.3g} s")
        if messages := link.stream.receive():
            return messages[0]


def _welcome(link: ShardLink, spec: WireSpec, answer: Message) -> None:
    link.max_rows, link.instance = handshake.read_answer(answer)
    link.stream.record.max_rows = link.max_rows
    link.stream.payload_bytes_max = max(wire.CONTROL_BYTES_MAX, wire.reply_bytes_max(spec, link.max_rows))


class Dialer:
    """Tries in threads of its own until a link is welcomed. `deliver` is called from them."""

    def __init__(self, spec: WireSpec, source: int, timeout_s: float, deliver: Callable[[ShardLink], None]) -> None:
        self._spec, self._source, self._timeout_s = spec, source, timeout_s
        self._deliver = deliver
        self._attempts: dict[tuple[int, int], _Attempt] = {}

    def dial(self, target: Target, after_s: float = 0.0) -> None:
        """Go on until it succeeds, from after_s seconds on. An attempt at another address of the same copy ends."""
        key = target.shard, target.replica
        attempt = self._attempts.get(key)
        if attempt and attempt.target == target and attempt.thread.is_alive() and not attempt.over.is_set():
            return
        self.forget(*key)
        self._attempts[key] = attempt = _Attempt(target)
        attempt.thread = threading.Thread(target=self._try, args=(attempt, after_s), name=f"dial-{key}", daemon=True)
        attempt.thread.start()

    def forget(self, shard: int, replica: int) -> None:
        if attempt := self._attempts.pop((shard, replica), None):
            attempt.over.set()

    def close(self) -> None:
        for key in list(self._attempts):
            self.forget(*key)

    def _try(self, attempt: "_Attempt", after_s: float) -> None:
        attempt.over.wait(after_s)
        pause_s = _FIRST_PAUSE_S
        while not attempt.over.is_set():
            try:
                link = open_link(self._spec, self._source, attempt.target, self._timeout_s)
            except (TransportError, ConfigError) as error:
                _log.debug("no link yet: %s", error)
                attempt.over.wait(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)
                continue
            if attempt.over.is_set():
                link.stream.close()
                return
            attempt.over.set()
            self._deliver(link)


class _Attempt:
    def __init__(self, target: Target) -> None:
        self.target = target
        self.over = threading.Event()
        self.thread: threading.Thread
