"""The waiting line: between tenants by what each has had, within a tenant by priority and arrival. Pure.

What a worker gave back stands before everybody else: its caller has begun to read.
"""

import bisect
import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from moonshard.errors import Overloaded
from moonshard.router.fairness import Ledger

T = TypeVar("T")

# Tokens that a waiting request is taken to generate, when the line is laid out ahead.
EXPECTED_OUTPUT = 16


@dataclass(slots=True)
class Entry(Generic[T]):
    """num_tokens: of the prompt. num_passed: how many were admitted before it though they came later."""

    id: str
    tenant: str
    priority: int
    num_tokens: int
    item: T
    number: int = -1
    num_passed: int = 0
    returned: bool = False

    @property
    def place(self) -> tuple[int, int]:
        """Within its tenant's line."""
        return -self.priority, self.number


class FairQueue(Generic[T]):
    """At most max_length entries, those that came back not counted: they were bounded when they came first."""

    def __init__(self, max_length: int, ledger: Ledger) -> None:
        self.max_length = max_length
        self._ledger = ledger
        self._entries: dict[str, Entry[T]] = {}
        self._lines: dict[str, list[Entry[T]]] = {}  # by tenant, in order of place; never empty
        self._returned: list[Entry[T]] = []  # oldest first
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, entry_id: str) -> bool:
        return entry_id in self._entries

    def num_waiting(self, tenant: str) -> int:
        return len(self._lines.get(tenant, ()))

    def check_room(self, num_entries: int, retry_after_s: Callable[[], float]) -> None:
        """Raises Overloaded when so many more do not fit."""
        if len(self._entries) - len(self._returned) + num_entries > self.max_length:
            raise Overloaded(f"the queue is full: {len(self._entries)} of {self.max_length} requests", retry_after_s())

    def push(self, entry: Entry[T]) -> None:
        """At the end of its tenant's line of equal priority. There must be room."""
        assert entry.id not in self._entries, f"{entry.id} waits already"
        entry.number = next(self._numbers)
        self._entries[entry.id] = entry
        bisect.insort(self._lines.setdefault(entry.tenant, []), entry, key=_place)

    def push_back_first(self, entry: Entry[T]) -> None:
        """An entry that was taken returns: before all that never left, the oldest of such first."""
        assert entry.number >= 0, "only what was in the line can return to it"
        entry.returned, entry.num_passed = True, 0
        self._entries[entry.id] = entry
        bisect.insort(self._returned, entry, key=_number)

    def take(self, entry_id: str) -> Entry[T] | None:
        """Take an entry out wherever it stands; None when it does not wait."""
        entry = self._entries.pop(entry_id, None)
        if entry is None:
            return None
        if entry.returned:
            self._returned.remove(entry)
            return entry
        line = self._lines[entry.tenant]
        del line[bisect.bisect_left(line, entry.place, key=_place)]
        if not line:
            del self._lines[entry.tenant]
        return entry

    def ahead(self, length: int) -> list[Entry[T]]:
        """The next `length` entries in the order in which they are due."""
        return list(itertools.islice(self._in_order(), length))

    def _in_order(self) -> Iterator[Entry[T]]:
        yield from self._returned
        # (tokens the tenant will have had, arrival of its next, its line, index of its next)
        due = [(self._ledger.served(tenant), line[0].number, tenant, 0) for tenant, line in self._lines.items()]
        heapq.heapify(due)
        while due:
            served, _, tenant, index = due[0]
            line = self._lines[tenant]
            entry = line[index]
            yield entry
            if index + 1 == len(line):
                heapq.heappop(due)
                continue
            cost = (entry.num_tokens + EXPECTED_OUTPUT) / self._ledger.weight(tenant)
            heapq.heapreplace(due, (served + cost, line[index + 1].number, tenant, index + 1))


def _place(entry: Entry[T]) -> tuple[int, int]:
    return entry.place


def _number(entry: Entry[T]) -> int:
    return entry.number
