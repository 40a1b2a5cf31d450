"""Lets waiting callers in while a long piece of work goes on in the event loop.

gRPC's server for asyncio takes one call at a time and needs about four turns of the loop for each (DECISIONS): work
that pauses for one turn lets hardly anybody in, though most may need no more than a refusal.
"""

import asyncio

TURNS_PER_CALL = 4
# Calls that may come in within one pause, so that the work goes on however many there are.
CALLS_PER_PAUSE = 8


class Door:
    """came: by the server, for every call. Of one event loop."""

    def __init__(self) -> None:
        self._num_calls = 0
        self._num_seen = 0

    def came(self) -> None:
        self._num_calls += 1

    async def pause(self) -> None:
        """One turn of the loop; and while calls keep coming, as many more as they need."""
        await asyncio.sleep(0)
        for _ in range(CALLS_PER_PAUSE):
            if self._num_calls == self._num_seen:
                return
            self._num_seen = self._num_calls
            for _ in range(TURNS_PER_CALL):
                await asyncio.sleep(0)
