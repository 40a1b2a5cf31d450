"""What a process answers to /livez and /readyz: whether its loop still turns, and whether it can serve."""

import time
from collections.abc import Callable


class Health:
    """One writer, any reader. stall_s: a loop that has not turned for so long does not live.

    A process that is still loading lives: nothing has beaten yet. readiness: what keeps it from serving, in words;
    empty when nothing does.
    """

    def __init__(self, stall_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.readiness: Callable[[], str] = lambda: "is starting"
        self._stall_s = stall_s
        self._clock = clock
        self._beat_s: float | None = None

    def beat(self) -> None:
        """The loop has turned. It does so with or without work, so a missing beat is a hang."""
        self._beat_s = self._clock()

    def liveness(self) -> str:
        """What is wrong, in words; empty when nothing is."""
        if self._beat_s is None or (age_s := self._clock() - self._beat_s) <= self._stall_s:
            return ""
        return f"no turn of the loop for {age_s:.0f} s, {self._stall_s:g} are allowed"
