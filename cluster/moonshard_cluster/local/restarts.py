"""Whether a worker that died is started again, and when. Pure: times are given."""

from collections import defaultdict, deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartRule:
    """At most max_deaths of one process within window_s seconds. The first of them is answered at once, later ones
    after pause_s, twice that and so on up to pause_max_s."""

    max_deaths: int = 10
    window_s: float = 60.0
    pause_s: float = 0.25
    pause_max_s: float = 5.0


class RestartBook:
    """The deaths of each process, by name."""

    def __init__(self, rule: RestartRule) -> None:
        self._rule = rule
        self._deaths: defaultdict[str, deque[float]] = defaultdict(deque)

    def died(self, name: str, now_s: float) -> float | None:
        """Seconds until its restart; None when it has died too often."""
        deaths = self._deaths[name]
        while deaths and deaths[0] <= now_s - self._rule.window_s:
            deaths.popleft()
        num_before = len(deaths)
        deaths.append(now_s)
        if num_before >= self._rule.max_deaths:
            return None
        return min(self._rule.pause_max_s, self._rule.pause_s * 2 ** (num_before - 1)) if num_before else 0.0
