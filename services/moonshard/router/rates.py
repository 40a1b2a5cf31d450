"""Tokens per second from totals that come with heartbeats. Pure: times are given."""

from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 5.0


@dataclass(slots=True)
class RateWindow:
    """The growth of a running total over the last window_s seconds."""

    window_s: float = WINDOW_S
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, at_s: float, total: int) -> None:
        """`total` since the worker's start, as known at `at_s`."""
        self._samples.append((at_s, total))
        self._forget(at_s)

    def per_second(self, now_s: float) -> float:
        """0 with fewer than two samples in the window."""
        self._forget(now_s)
        if len(self._samples) < 2:
            return 0.0
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0

    def _forget(self, now_s: float) -> None:
        while self._samples and self._samples[0][0] < now_s - self.window_s:
            self._samples.popleft()
