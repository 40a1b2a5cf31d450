"""What a gateway's prompt ids say, notes of the shaped template (`marks.py`) taken out. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from moonshard.router.gateway.marks import Marks, find_marks

THOUGHT_START, THOUGHT_END = "<think>", "</think>"


class Tokenizer(Protocol):
    def encode(self, text: str, allow_special: bool) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    @property
    def special_tokens(self) -> Mapping[str, int]: ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """token_ids: what the model reads. opens_thought: whether it leaves a thought open. is_instant: whether it ends
    with an empty one. tools: the declared tools as the client's JSON, "" without.
    """

    token_ids: Sequence[int]
    opens_thought: bool
    is_instant: bool
    tools: str = ""


class PromptReader:
    """A prompt without notes is passed on as it is."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        special = tokenizer.special_tokens
        self.marks: Marks | None = find_marks(special)
        self._tokenizer = tokenizer
        self._special = frozenset(special.values())
        self._start = special.get(THOUGHT_START)
        self._end = special.get(THOUGHT_END)

    def read(self, ids: Sequence[int], thinks_only_if_asked: bool) -> Prompt:
        """thinks_only_if_asked: an API whose default is no thought, so the prompt's open one is closed."""
        token_ids, tools, asked = list(ids), "", False
        if self.marks:
            token_ids, tools = self._split_tools(token_ids, self.marks)
            if asked := token_ids[-1:] == [self.marks.thinking.token_id]:
                token_ids.pop()
            token_ids = self._unescape(token_ids, self.marks.escape.token_id)
        opens = self._start is not None and token_ids[-1:] == [self._start]
        if opens and thinks_only_if_asked and not asked and self._end is not None:
            token_ids.append(self._end)
            opens = False
        is_instant = self._end is not None and token_ids[-1:] == [self._end]
        return Prompt(token_ids, opens, is_instant, tools)

    def _split_tools(self, ids: list[int], marks: Marks) -> tuple[list[int], str]:
        if marks.tools.token_id not in ids:
            return ids, ""
        at = ids.index(marks.tools.token_id)
        return ids[:at], self._tokenizer.decode(ids[at + 1 :])

    def _unescape(self, ids: list[int], escape: int) -> list[int]:
        """Every stretch between special tokens that holds an escape, encoded anew as the plain text that it is."""
        if escape not in ids:
            return ids
        told: list[int] = []
        stretch: list[int] = []
        for token_id in [*ids, None]:
            if token_id is not None and (token_id == escape or token_id not in self._special):
                stretch.append(token_id)
                continue
            told += self._plain(stretch, escape)
            stretch = []
            if token_id is not None:
                told.append(token_id)
        return told

    def _plain(self, stretch: list[int], escape: int) -> list[int]:
        if escape not in stretch:
            return stretch
        text = self._tokenizer.decode([token_id for token_id in stretch if token_id != escape])
        return self._tokenizer.encode(text, allow_special=False)
