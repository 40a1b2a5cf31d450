"""The waiting line: first in, first out, with a limit. Knows nothing of workers or time."""

from collections.abc import Iterator
from typing import Generic, TypeVar

from moonshard.errors import Overloaded

T = TypeVar("T")

RETRY_AFTER_S = 1.0


class WaitingQueue(Generic[T]):
    """Entries by id in order of arrival, at most max_length of them."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self._entries: dict[str, T] = {}  # a dict keeps the order of insertion

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        return iter(self._entries.values())

    def check_room(self, num_entries: int) -> None:
        """Raises Overloaded when so many more do not fit."""
        if len(self._entries) + num_entries > self.max_length:
            raise Overloaded(f"the queue is full: {len(self._entries)} of {self.max_length} requests", RETRY_AFTER_S)

    def push(self, entry_id: str, entry: T) -> None:
        """Raises Overloaded when full. An id waits once."""
        assert entry_id not in self._entries, f"{entry_id} waits already"
        self.check_room(1)
        self._entries[entry_id] = entry

    def pop(self, entry_id: str) -> T | None:
        """Take an entry out wherever it stands; None when it does not wait."""
        return self._entries.pop(entry_id, None)
