"""New token ids to new text, without the tokens that only say that the turn is over. Pure."""

from collections.abc import Sequence

from moonshard.errors import RequestError
from moonshard.router.output import Delta
from moonshard.router.served_model import StreamDecoder

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """One growing text. hidden: ids that never show, the end-of-turn tokens; the stopping token is hidden too."""

    def __init__(self, decoder: StreamDecoder, hidden: Sequence[int]) -> None:
        self._decoder = decoder
        self._hidden = frozenset(hidden)

    def push(self, delta: Delta) -> str:
        """May lag the ids while a character is incomplete; complete with the delta that finishes."""
        finish = delta.finish
        ids = delta.token_ids
        if finish and finish.stop_token_id is not None and ids and ids[-1] == finish.stop_token_id:
            ids = ids[:-1]
        text = "".join(self._decode(token_id) for token_id in ids if token_id not in self._hidden)
        return text + self._decoder.finish() if finish else text

    def _decode(self, token_id: int) -> str:
        # A model's vocabulary may be padded beyond the tokenizer's: such an id has no text.
        try:
            return self._decoder.push((token_id,))
        except RequestError:
            return REPLACEMENT
