"""How long a dispatcher waits, and for what. Pure: no clock."""

import math
from collections import deque
from dataclasses import dataclass

_WINDOW = 256
_PERCENTILE = 0.99
_SLOWER = 4.0  # times the percentile: then a shard counts as slow
_HEDGE_SHARE = 0.05  # of all dispatches may be asked for twice
_HEDGE_BURST = 16
_HEDGE_EVERY_S = 0.5  # though the share is spent: a dispatcher that waits makes no calls that would earn another


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. reply_s: for the answer of a link that is up; then the link is suspected.

    failover_s: for a shard none of whose links is up, counted from the beginning of the combine; 0 fails at once.
    hedge_s: at least, before rows also go to a replica. degrade_s: then rows go on without a lost shard; 0 is never.
    """

    reply_s: float = 30.0
    failover_s: float = 0.0
    hedge_s: float = 0.25
    degrade_s: float = 0.0

    @property
    def recovers(self) -> bool:
        return self.failover_s > 0


class WaitWindow:
    """The last waits of combines, and what they say about when a wait is unusual."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._waits_s: deque[float] = deque(maxlen=_WINDOW)
        self._num_added = 0
        self.hedge_s = min(patience.reply_s, _SLOWER * patience.hedge_s)

    def add(self, wait_s: float) -> None:
        self._waits_s.append(wait_s)
        self._num_added += 1
        if self._num_added % (_WINDOW // 4) == 0:
            self.hedge_s = hedge_after(sorted(self._waits_s), self._patience)


class HedgeBudget:
    """Keeps hedges from doubling the load of shards that are slow because they are busy (Dean and Barroso, 2013)."""

    def __init__(self) -> None:
        self.num_refused = 0
        self._hedges = float(_HEDGE_BURST)
        self._num_calls = 0
        self._taken_s = -math.inf
        self._is_refusing = False

    def take(self, num_calls: int, now_s: float) -> bool:
        """Whether one more is allowed after num_calls dispatches. Refusals in a row count once."""
        earned = _HEDGE_SHARE * (num_calls - self._num_calls)
        self._hedges, self._num_calls = min(_HEDGE_BURST, self._hedges + earned), num_calls
        allowed = self._hedges >= 1 or now_s - self._taken_s >= _HEDGE_EVERY_S
        if allowed:
            self._hedges, self._taken_s = max(0.0, self._hedges - 1), now_s
        elif not self._is_refusing:
            self.num_refused += 1
        self._is_refusing = not allowed
        return allowed

    def again_s(self) -> float:
        """When one will be allowed, at the latest."""
        return self._taken_s + _HEDGE_EVERY_S


def hedge_after(sorted_waits_s: list[float], patience: Patience) -> float:
    """Seconds after which a shard is slow: some times the 99th percentile, within the limits of `patience`."""
    place = math.ceil(_PERCENTILE * len(sorted_waits_s)) - 1
    return min(patience.reply_s, max(patience.hedge_s, _SLOWER * sorted_waits_s[place]))
