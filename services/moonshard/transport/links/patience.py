"""How long a dispatcher waits, and for what. Pure: no clock."""

import math
from collections import deque
from dataclasses import dataclass

_WINDOW = 256
_PERCENTILE = 0.99
_SLOWER = 4.0  # times the percentile: then a shard counts as slow


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. reply_s: for the answer of a link that is up; then the link is suspected.

    failover_s: for a shard none of whose links is up, counted from the beginning of the combine; 0 fails at once.
    hedge_s: at least, before rows also go to a replica.
    """

    reply_s: float = 30.0
    failover_s: float = 0.0
    hedge_s: float = 0.25

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


def hedge_after(sorted_waits_s: list[float], patience: Patience) -> float:
    """Seconds after which a shard is slow: some times the 99th percentile, within the limits of `patience`."""
    place = math.ceil(_PERCENTILE * len(sorted_waits_s)) - 1
    return min(patience.reply_s, max(patience.hedge_s, _SLOWER * sorted_waits_s[place]))
