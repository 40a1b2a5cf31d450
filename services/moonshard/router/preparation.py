"""What takes long before a request can be queued (templates, long texts, grammars) runs in threads, so that tokens of
other requests keep flowing."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from moonshard.errors import Overloaded

T = TypeVar("T")

NUM_THREADS = 2
# Requests that may wait for a thread.
MAX_WAITING = 256
RETRY_AFTER_S = 1.0


class Preparation:
    """One per router; `run` is called in the event loop's thread."""

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._num_open = 0
        self._threads = ThreadPoolExecutor(NUM_THREADS, "prepare")

    @property
    def num_open(self) -> int:
        """That wait or run."""
        return self._num_open

    async def run(self, make: Callable[[], T]) -> T:
        """What `make` returns, or raises. Raises Overloaded when too many wait already."""
        if self._num_open >= self._max_waiting:
            raise Overloaded(f"{self._num_open} requests are being prepared, the most allowed", RETRY_AFTER_S)
        self._num_open += 1
        try:
            work = self._threads.submit(make)
        except BaseException:
            self._num_open -= 1
            raise
        # A caller who leaves does not make room: the thread is busy for as long as it is.
        loop = asyncio.get_running_loop()
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended))
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        """What waits is not begun any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self) -> None:
        self._num_open -= 1
