"""What an output may be, as a tree. Pure nouns; `lark.py` writes them down."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moonshard.tokenizer.spellings import spelling_pattern


@dataclass(frozen=True, slots=True)
class Text:
    """Any text, without special tokens."""


@dataclass(frozen=True, slots=True)
class Literal:
    """This text; never a special token, whatever it spells."""

    text: str


@dataclass(frozen=True, slots=True)
class Special:
    """One special token."""

    token_id: int


@dataclass(frozen=True, slots=True)
class Json:
    """A value of this JSON schema."""

    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Regex:
    """A text that the pattern matches from end to end."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Lark:
    """What another grammar allows."""

    grammar: str


@dataclass(frozen=True, slots=True)
class Chain:
    """One after the other."""

    shapes: tuple["Shape", ...]


@dataclass(frozen=True, slots=True)
class OneOf:
    shapes: tuple["Shape", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """at_most: None is without limit."""

    shape: "Shape"
    at_least: int = 0
    at_most: int | None = None


Shape = Text | Literal | Special | Json | Regex | Lark | Chain | OneOf | Repeat


class Speller:
    """Reads spellings of special tokens in an operator's strings, such as the begin of a tag."""

    def __init__(self, special_ids: Mapping[str, int]) -> None:
        self._ids = dict(special_ids)
        self._names = spelling_pattern(self._ids)

    def spell(self, text: str) -> Chain:
        """Literals and special tokens, in order."""
        return Chain(tuple(self._parts(text)))

    def _parts(self, text: str) -> Iterator[Literal | Special]:
        end = 0
        for found in self._names.finditer(text):
            if found.start() > end:
                yield Literal(text[end : found.start()])
            yield Special(self._ids[found[0]])
            end = found.end()
        if end < len(text):
            yield Literal(text[end:])
