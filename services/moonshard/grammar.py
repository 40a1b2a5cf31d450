"""Constrained decoding: which tokens may come next under a grammar. llguidance does the work.

Shared by the router, which checks grammars, and the attention worker, which follows them. No torch, no gRPC.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from moonshard.errors import CheckpointError, RequestError
from moonshard.tokenizer import Tokenizer

# Compiled grammars that are kept for the next request with the same text: tools and schemas repeat.
NUM_COMPILED = 64
COMPLAINT_CHARACTERS = 400

# An unknown special token is answered with a list of all 256; the other only says that details are switched off.
_LISTING = re.compile(r"; following special tokens are available:.*?(?=\n|$)|<non-verbose/>")


class GrammarEngine:
    """Built once per process: it walks the vocabulary (0.4 s for 163 840 tokens).

    Special tokens are of a kind of their own: a grammar can name them (`<think>`, or `<[163586]>` by id), while texts,
    patterns and JSON strings never produce them, whatever they spell. Where a grammar may end, the end-of-turn ids
    are allowed; CheckpointError when there are none. Any thread may ask; compiling leaves the interpreter to others.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        if not eos_token_ids:
            raise CheckpointError("config.json: expected an eos_token_id, found none: no grammar could end")
        vocabulary = TokenizerWrapper(_Vocabulary(tokenizer, vocab_size, eos_token_ids[0]))
        self._tokenizer = LLTokenizer(vocabulary, n_vocab=vocab_size, eos_token=list(eos_token_ids))
        self._limits = LLParserLimits(verbose_errors=False)
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def check(self, text: str) -> None:
        """Raises RequestError("constraint", ...) with the engine's complaint."""
        self._compile(text)

    def matcher(self, text: str) -> "GrammarMatcher":
        """A matcher at the grammar's start. text: llguidance's JSON, or Lark. Raises RequestError as `check` does."""
        return GrammarMatcher(self._compile(text).deep_copy())

    def known_matcher(self, text: str) -> "GrammarMatcher | None":
        """The same at once where the grammar was compiled lately, else None."""
        found = self._recall(text)
        return GrammarMatcher(found.deep_copy()) if found else None

    def _compile(self, text: str) -> LLMatcher:
        if found := self._recall(text):
            return found
        found = LLMatcher(self._tokenizer, text, log_level=0, limits=self._limits)
        _check(found)
        with self._lock:
            self._compiled[text] = found
            while len(self._compiled) > NUM_COMPILED:
                self._compiled.popitem(last=False)
        return found

    def _recall(self, text: str) -> LLMatcher | None:
        with self._lock:
            if text in self._compiled:
                self._compiled.move_to_end(text)
            return self._compiled.get(text)


class GrammarMatcher:
    """How far one output has come in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self) -> bytes:
        """One bit per token of the vocabulary, lowest bit first: set where the token may come next.

        Raises RequestError when the grammar turned out too costly to follow.
        """
        found = self._matcher.compute_bitmask()
        _check(self._matcher)
        return found

    def accept(self, token_id: int) -> None:
        """Take the next token of the output. Raises RequestError for one that is not allowed."""
        self._matcher.consume_token(token_id)
        _check(self._matcher)

    @property
    def is_stopped(self) -> bool:
        """Whether the output is complete: nothing but the end of the turn may follow."""
        return self._matcher.is_stopped()


class _Vocabulary:
    """The tokenizer as llguidance reads it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_id: int) -> None:
        self.tokens = tokenizer.token_bytes(vocab_size)
        self.special_token_ids = [number for number in tokenizer.special_ids if number < vocab_size]
        self.eos_token_id = eos_token_id
        self.bos_token_id = None
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        spelled = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(spelled, allow_special=False)


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        complaint = _LISTING.sub("", matcher.get_error()).strip()
        raise RequestError("constraint", complaint[:COMPLAINT_CHARACTERS])
