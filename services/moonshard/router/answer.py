"""What a request's caller has not read yet. One writer (the engine), one reader (the call), one event loop.

What waits is merged, so a slow reader holds at most its own max_tokens and never slows the others.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from moonshard.errors import DeadlineExceeded, MoonshardError
from moonshard.router.output import ChoiceDelta, ChoiceOutput


class Answer:
    """All choices of one request. Whoever got it from `FrontDoor.submit` calls `abandon` in the end, come what may.

    num_degraded: tokens, of prompt and output, that ran without all of their experts.
    """

    def __init__(self, request_id: str, outputs: Sequence[ChoiceOutput], leave: Callable[["Answer"], None]) -> None:
        self.request_id = request_id
        self.outputs = outputs
        self.num_degraded = 0
        self._leave = leave
        self._changed = asyncio.Event()
        self._news: dict[int, None] = {}  # choices with something to read, in order
        self._error: MoonshardError | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether more may come."""
        return self._error is None and not all(output.is_finished for output in self.outputs)

    def touch(self, choice: int) -> None:
        """A choice has something to read."""
        self._news[choice] = None
        self._changed.set()

    def fail(self, error: MoonshardError) -> None:
        """End with an error, which the reader meets after what came before it. The first one counts."""
        self._error = self._error or error
        self._changed.set()

    def abandon(self) -> None:
        """The caller wants no more: what still runs is aborted. May be called twice and after the end."""
        if self._timer:
            self._timer.cancel()
        self._leave(self)

    def end_at(self, in_s: float) -> None:
        """Fail with DeadlineExceeded and abort what runs when it is not over in in_s seconds."""
        self._timer = asyncio.get_running_loop().call_later(in_s, self._expire)

    def _expire(self) -> None:
        if self.is_open:
            self.fail(DeadlineExceeded("the request's deadline has passed"))
            self.abandon()

    async def deltas(self) -> AsyncGenerator[ChoiceDelta, None]:
        """All choices interleaved, until every one has finished. Raises the error given to `fail`."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            news, self._news = self._news, {}
            for choice in news:
                if delta := self.outputs[choice].take():
                    yield delta
            if self._news:
                continue
            if self._error:
                raise self._error
            if not self.is_open:
                return
