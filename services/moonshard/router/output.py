"""What a request's caller has not read yet. One writer (the engine), one reader (the call), one event loop.

Waiting tokens are merged, so a slow reader holds at most its own max_tokens and never slows the others.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from moonshard.errors import MoonshardError
from moonshard.router.requests import Finish


@dataclass(frozen=True, slots=True)
class Delta:
    """New tokens; `finish` is set on the last one."""

    token_ids: tuple[int, ...]
    finish: Finish | None


class OutputStream:
    """Tokens on their way to the caller."""

    def __init__(self) -> None:
        self._token_ids: list[int] = []
        self._finish: Finish | None = None
        self._error: MoonshardError | None = None
        self._changed = asyncio.Event()

    def push(self, token_ids: Sequence[int]) -> None:
        self._token_ids.extend(token_ids)
        self._changed.set()

    def finish(self, finish: Finish) -> None:
        self._finish = finish
        self._changed.set()

    def fail(self, error: MoonshardError) -> None:
        """End with an error, which the reader meets after the tokens that came before it."""
        self._error = error
        self._changed.set()

    async def deltas(self) -> AsyncIterator[Delta]:
        """Until the finish. Raises the error given to `fail`."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            delta = Delta(tuple(self._token_ids), self._finish)
            self._token_ids.clear()
            if delta.token_ids or delta.finish:
                yield delta
            if delta.finish:
                return
            if self._error:
                raise self._error
