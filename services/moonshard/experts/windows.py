"""When counts may leave the shard: in windows that are long and full enough to say little of any one prompt.

Fine-grained expert counts can give prompts away (arXiv 2410.22884). Nothing per expert is told before min_s seconds
have passed and every layer has served min_rows (row, expert) pairs since the last window. Pure: times are given.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moonshard.experts.counters import LoadCounters


@dataclass(frozen=True, slots=True)
class WindowRule:
    """Both must be met. min_rows: (row, expert) pairs in each MoE layer of the shard."""

    min_s: float
    min_rows: int


@dataclass(frozen=True, slots=True)
class LoadWindow:
    """What was served in span_s seconds. rows_LE as in Tally."""

    span_s: float
    rows_LE: NDArray[np.int64]


class LoadWindows:
    """The only door for per-expert counts. `told_LE`: the sum of all windows so far; any thread may read it."""

    def __init__(self, counters: LoadCounters, rule: WindowRule, now_s: float) -> None:
        self.told_LE = np.zeros_like(counters.rows_LE)
        self._counters = counters
        self._rule = rule
        self._since_s = now_s

    def take(self, now_s: float) -> LoadWindow | None:
        """The next window, or None while it is too short, too thin, or empty. One thread only."""
        span_s = now_s - self._since_s
        counted_LE = self._counters.rows_LE.copy()
        rows_LE = counted_LE - self.told_LE
        fewest = int(rows_LE.sum(axis=1).min())
        if span_s < self._rule.min_s or fewest < self._rule.min_rows or not rows_LE.any():
            return None
        self.told_LE, self._since_s = counted_LE, now_s
        return LoadWindow(span_s, rows_LE)
