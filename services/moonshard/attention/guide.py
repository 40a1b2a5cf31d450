"""A grammar over one output: in force from its first token, or from behind a marker such as the end of the thought."""

import numpy as np
from numpy.typing import NDArray

from moonshard.errors import RequestError
from moonshard.grammar import GrammarMatcher


class Guide:
    """after_token_id: the grammar binds what follows this token's first occurrence; None: everything."""

    def __init__(self, matcher: GrammarMatcher, after_token_id: int | None = None) -> None:
        self._matcher = matcher
        self._awaited = after_token_id

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end of the turn may follow."""
        return self._awaited is None and self._matcher.is_stopped

    def allowed(self, vocab_size: int) -> NDArray[np.bool_] | None:
        """[V]: which tokens may come next; None when all may. Raises RequestError when none may."""
        if self._awaited is not None:
            return None
        bits = np.frombuffer(self._matcher.allowed(), np.uint8)
        allowed_V = np.unpackbits(bits, count=vocab_size, bitorder="little").view(np.bool_)
        if not allowed_V.any():
            raise RequestError("constraint", "no token of the vocabulary may follow the output so far")
        return allowed_V

    def accept(self, token: int) -> None:
        """Take the next token of the output. Raises RequestError for one that is not allowed."""
        if self._awaited is None:
            self._matcher.accept(token)
        elif token == self._awaited:
            self._awaited = None
