"""The life of one worker process: what ends it, and the guarantee that it does end.

A process ends on SIGTERM, when its lifeline (a pipe held by the launcher) closes, or when its own code calls `stop`.
From then on it has `grace_s` seconds to finish by itself; after them it is ended from outside its main thread, because
a main thread may be inside a collective that never returns.
"""

import logging
import os
import select
import signal
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)

FORCED_EXIT_STATUS = 70
# When a setting or the checkpoint is at fault: starting again will not help.
USER_ERROR_STATUS = 2
# To a shard that allows it (`experts.fault_hooks_s`), for a while: answer nonsense, nothing, or for another layer.
CORRUPT_SIGNAL, PARTITION_SIGNAL, STALE_SIGNAL = signal.SIGUSR2, signal.SIGUSR1, signal.SIGURG
DAMAGE_SIGNAL = signal.SIGVTALRM  # for good: a bit of a weight is flipped


class Lifetime:
    """`stopping` is set once, with the first `reason`. `on_stop` runs then, in the stopping thread; keep it short."""

    def __init__(self, grace_s: float = 5.0) -> None:
        self.stopping = threading.Event()
        self.reason = ""
        self.failed = False
        self.on_stop: list[Callable[[], None]] = []
        self.on_forced_exit: list[Callable[[], None]] = []
        self._grace_s = grace_s
        self._lock = threading.Lock()

    def stop(self, reason: str, failed: bool = False) -> None:
        with self._lock:
            if self.stopping.is_set():
                return
            self.reason, self.failed = reason, failed
            self.stopping.set()
        logger.log(logging.ERROR if failed else logging.INFO, "stopping: %s", reason)
        threading.Thread(target=self._force, name="forced-exit", daemon=True).start()
        for call in self.on_stop:
            call()

    def handle_signals(self, ignore_interrupt: bool) -> None:
        """SIGTERM stops; so does Ctrl-C, unless a launcher handles it for the whole group. Main thread only."""
        # The handler only starts a thread: `stop` takes a lock that the interrupted main thread might hold.
        handler = lambda *_: threading.Thread(target=self.stop, args=("SIGTERM",), daemon=True).start()  # noqa: E731
        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignore_interrupt else handler)

    def watch_lifeline(self, fd: int) -> None:
        """Stop when the other end of the pipe `fd` closes, as it does however the launcher dies."""
        threading.Thread(target=self._watch, args=(fd,), name="lifeline", daemon=True).start()

    def _watch(self, fd: int) -> None:
        select.select([fd], [], [])
        self.stop("the launcher is gone", failed=True)

    def _force(self) -> None:
        threading.Event().wait(self._grace_s)
        logger.error("did not end within %g s of: %s", self._grace_s, self.reason)
        for call in self.on_forced_exit:
            call()
        os._exit(FORCED_EXIT_STATUS)
