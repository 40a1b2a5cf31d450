"""Texts that end an output: found in what streams by, and cut. Pure."""

from collections.abc import Sequence


class StopTexts:
    """One growing text. `push` gives out what is certain: the end that may yet begin a stop text is held back.

    found: the stop text that ended the output, once one did. Of several the one that begins first, then the longest.
    """

    def __init__(self, stops: Sequence[str], include: bool) -> None:
        self.found: str | None = None
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def push(self, text: str) -> str:
        """New text in, text for the caller out; nothing more after a stop text was found."""
        if not self._stops or self.found is not None:
            return "" if self.found is not None else text
        self._held += text
        starts = [(at, -len(stop), stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if starts:
            at, _, self.found = min(starts)
            return self._release(at + len(self.found) if self._include else at)
        return self._release(len(self._held) - self._num_open())

    def finish(self) -> str:
        """What was held back, when the output ends otherwise."""
        return "" if self.found is not None else self._release(len(self._held))

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _num_open(self) -> int:
        """Characters at the end that are the beginning of some stop text, at most."""
        longest = min(max(map(len, self._stops)) - 1, len(self._held))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
