"""What one choice of a request has said: tokens in as they come, text out with stop texts cut.

Tokens become text when they arrive, not when they are read: a stop text ends the sequence at its worker at once,
however slowly the caller reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moonshard.router.detokenizer import Detokenizer
from moonshard.router.requests import Finish
from moonshard.router.stop_texts import StopTexts
from moonshard.sampling import TokenLogprobs


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What is new of one choice; `finish` is set on its last one.

    text may lag token_ids while a character is incomplete or a stop text may have begun. logprobs: one per id when
    asked for. prompt_logprobs: once, with the first delta.
    """

    choice: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    finish: Finish | None = None


class ChoiceOutput:
    """One writer (the engine), one reader (the answer). What waits to be read is merged into one delta.

    token_ids: everything generated so far, for whoever must begin again elsewhere. min_tokens: no stop text is seen in
    that many first tokens.
    """

    def __init__(self, choice: int, text: Detokenizer, stops: StopTexts, min_tokens: int = 0) -> None:
        self.choice = choice
        self.token_ids: list[int] = []
        self.is_finished = False
        self._text = text
        self._stops = stops
        self._min_tokens = min_tokens
        self._num_read = 0
        self._pending = ""
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        self._finish: Finish | None = None

    @property
    def stop_text(self) -> str | None:
        """The stop text that was found: nothing after its last token is wanted."""
        return self._stops.found

    def push(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[TokenLogprobs] = (),
        prompt_logprobs: tuple[TokenLogprobs, ...] = (),
        stop_token_id: int | None = None,
    ) -> int:
        """Take new tokens; returns how many count, fewer than given when a stop text ended the output within them.

        stop_token_id: the last of them when it ended the sequence; it has no text.
        """
        self._prompt_logprobs += prompt_logprobs
        num_taken = 0
        for number, token_id in enumerate(token_ids, 1):
            self.token_ids.append(token_id)
            num_taken = number
            if token_id != stop_token_id or number < len(token_ids):
                self._append(self._text.push(token_id))
            if self._stops.found is not None:
                break
        self._logprobs += logprobs[:num_taken]
        return num_taken

    def finish(self, finish: Finish) -> None:
        if self._stops.found is None:
            self._append(self._text.finish())
        self._pending += self._stops.finish()
        self._finish = finish
        self.is_finished = True

    def take(self) -> ChoiceDelta | None:
        """What is new since the last call; None when nothing is."""
        token_ids = tuple(self.token_ids[self._num_read :])
        if not token_ids and self._finish is None:
            return None
        delta = ChoiceDelta(
            self.choice, token_ids, self._pending, tuple(self._logprobs), self._prompt_logprobs, self._finish
        )
        self._num_read += len(token_ids)
        self._pending, self._logprobs, self._prompt_logprobs, self._finish = "", [], (), None
        return delta

    def _append(self, text: str) -> None:
        if text:
            self._pending += text if len(self.token_ids) <= self._min_tokens else self._stops.push(text)
