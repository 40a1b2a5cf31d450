"""Numbered bells in the group's store: all ranks sleep at bell n until one of them rings it.

A rung bell stays rung, so a ring that comes before the sleep is not lost.
"""

import logging
import threading
from contextlib import suppress
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

_log = logging.getLogger(__name__)
_SLEEP_MAX = timedelta(days=365)


class Bell:
    """`sleep` and `close` from the owner's thread, `ring` from any.

    A thread listens while we sleep: the store's own timed wait warns on standard error each time it ends.
    """

    def __init__(self, store: TCPStore, ringer: TCPStore, prefix: str = "") -> None:
        """Two connections, because a waiting one cannot ring. prefix: of the keys in the store."""
        self._prefix = prefix
        self._store = store
        self._ringer = ringer
        self._ring_lock = threading.Lock()
        self._last_rung = -1
        self._listening_to = -1
        self._listener: threading.Thread | None = None
        self._heard = threading.Event()
        self._failure: RuntimeError | None = None
        self._interruption = ""
        self._closed = False

    def ring(self, number: int) -> None:
        with self._ring_lock:
            if self._closed or number <= self._last_rung:
                return
            try:
                self._ringer.set(self._key(number), "1")
                self._last_rung = number
            except RuntimeError as error:
                _log.warning("cannot ring bell %d: %s", number, str(error).partition("\n")[0])

    def sleep(self, number: int, timeout_s: float) -> bool:
        """Block until the bell is rung; False after timeout_s. Raises RuntimeError when rank 0's store is gone, or
        after `interrupt`."""
        if self._listening_to != number:
            self._listening_to = number
            self._heard.clear()
            self._listener = threading.Thread(target=self._listen, args=(number,), name="moonshard-bell", daemon=True)
            self._listener.start()
        if not self._interruption and not self._heard.wait(max(0.0, timeout_s)):
            return False
        if self._interruption:
            raise RuntimeError(self._interruption)
        if self._failure:
            raise self._failure
        return True

    def interrupt(self, reason: str) -> None:
        """End our own sleep, present or to come. Any thread."""
        self._interruption = reason
        self._heard.set()

    def forget(self, number: int) -> None:
        """Remove a bell that all ranks have passed."""
        with self._ring_lock, suppress(RuntimeError):
            self._ringer.delete_key(self._key(number))

    def close(self) -> None:
        """End our own listener, and with it the others' sleep: a group that lost a rank is over, better told early."""
        if self._listener and self._listener.is_alive():
            self.ring(self._listening_to)
        with self._ring_lock:
            self._closed = True

    def _listen(self, number: int) -> None:
        try:
            self._store.wait([self._key(number)], _SLEEP_MAX)
        except RuntimeError as error:
            self._failure = error
        self._heard.set()

    def _key(self, number: int) -> str:
        return f"{self._prefix}bell/{number}"
