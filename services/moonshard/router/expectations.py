"""How long a new request would wait: from how many wait before it and how fast they have been going. Pure."""

from collections import deque

WINDOW_S = 10.0
MIN_KNOWN = 8
MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0

# Of the time to its deadline, what a request may wait: the rest is for the answer, which is not worth beginning late.
WAITING_SHARE = 0.5


class AdmissionRate:
    """Admissions per second while somebody waited: an empty line tells what is offered, not what is possible."""

    def __init__(self, max_remembered: int = 256) -> None:
        self._times: deque[float] = deque(maxlen=max_remembered)

    def add(self, now_s: float, num_waiting: int) -> None:
        """One was admitted and num_waiting are left."""
        if num_waiting:
            self._times.append(now_s)
        else:
            self._times.clear()

    def per_second(self, now_s: float) -> float | None:
        """Over the last WINDOW_S; None when too few are known."""
        while self._times and self._times[0] < now_s - WINDOW_S:
            self._times.popleft()
        if len(self._times) < MIN_KNOWN:
            return None
        return len(self._times) / max(now_s - self._times[0], 1e-3)


def expected_wait_s(num_waiting: int, num_own: int, share: float, rate: float | None) -> float | None:
    """num_own of num_waiting are the tenant's own, whose fair share of the admissions is `share`; None: unknown.

    A tenant with few requests waits for its own share to come up, not for everybody's requests before it.
    """
    if rate is None:
        return None
    num_before = min(float(num_waiting), num_own / share if share else float(num_waiting))
    return num_before / rate


def retry_after_s(num_waiting: int, rate: float | None) -> float:
    """When a refused caller may find room: a tenth of the line has moved on by then."""
    if not rate:
        return MIN_RETRY_S
    return min(max(num_waiting / rate / 10, MIN_RETRY_S), MAX_RETRY_S)


def comes_too_late(wait_s: float | None, left_s: float) -> bool:
    """Whether a request with left_s to its deadline had better not wait; an unknown wait is given a chance."""
    return wait_s is not None and wait_s > WAITING_SHARE * left_s
