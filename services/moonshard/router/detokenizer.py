"""New token ids to new text, without the tokens that only say that the turn is over. Pure."""

from collections.abc import Sequence

from moonshard.errors import RequestError
from moonshard.tokenizer import StreamDecoder

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """One growing text. hidden: ids that never show, the end-of-turn tokens."""

    def __init__(self, decoder: StreamDecoder, hidden: Sequence[int]) -> None:
        self._decoder = decoder
        self._hidden = frozenset(hidden)

    def push(self, token_id: int) -> str:
        """The text that is complete now; may lag the ids while a character is incomplete."""
        if token_id in self._hidden:
            return ""
        # A model's vocabulary may be padded beyond the tokenizer's: such an id has no text.
        try:
            return self._decoder.push((token_id,))
        except RequestError:
            return REPLACEMENT

    def finish(self) -> str:
        """What was held back."""
        return self._decoder.finish()
