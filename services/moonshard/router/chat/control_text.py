"""Keeps what callers write from becoming control tokens. Pure.

Templates mix their own text with callers'. Before they run, every character of callers' text that could begin a special
token is replaced by one that occurs nowhere; afterwards it is put back, and only spellings that were whole in between
are the template's own. A text without spellings is encoded exactly as the reference encodes it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, Protocol

from moonshard.errors import RequestError
from moonshard.tokenizer.spellings import spelling_pattern

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class Tokenizer(Protocol):
    def encode(self, text: str, allow_special: bool) -> list[int]: ...


class ControlText:
    """special_tokens: ids by spelling."""

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self._ids = dict(special_tokens)
        self._beginnings = sorted({name[0] for name in self._ids if not name[0].isalnum()})
        self._names = spelling_pattern(self._ids)

    def shield(self, callers: Any) -> "Shield":
        """callers: all that the caller wrote, texts in lists and objects of any depth."""
        used = set(chain.from_iterable(_texts(callers)))
        unused = (character for plane in _PRIVATE_USE for character in map(chr, plane) if character not in used)
        stand_ins = dict(zip(self._beginnings, unused, strict=False))
        if len(stand_ins) < len(self._beginnings):
            raise RequestError("messages", "every private-use character of Unicode occurs in them")
        return Shield(stand_ins, self._names, self._ids)


class Shield:
    """stand_ins: what replaces the first characters of spellings while a template runs."""

    def __init__(self, stand_ins: dict[str, str], names: re.Pattern[str], ids: Mapping[str, int]) -> None:
        self._hide = str.maketrans(stand_ins)
        self._show = str.maketrans({stand_in: character for character, stand_in in stand_ins.items()})
        self._names = names
        self._ids = ids

    def hide(self, value: Any) -> Any:
        """The value with the first characters of spellings replaced in every text."""
        return _map_texts(value, lambda text: text.translate(self._hide))

    def show(self, rendered: str) -> str:
        """The rendered text as it is meant."""
        return rendered.translate(self._show)

    def encode(self, rendered: str, tokenizer: Tokenizer) -> list[int]:
        """Ids of a rendered text: spellings of the template become special tokens, those of callers stay text."""
        text = self.show(rendered)
        own = [found.span() for found in self._names.finditer(rendered)]
        if own == [found.span() for found in self._names.finditer(text)]:
            return tokenizer.encode(text, allow_special=True)
        ids: list[int] = []
        end = 0
        for start, stop in own:
            ids += tokenizer.encode(text[end:start], allow_special=False)
            ids.append(self._ids[text[start:stop]])
            end = stop
        return ids + tokenizer.encode(text[end:], allow_special=False)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _texts(key)
            yield from _texts(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry)


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_map_texts(key, change): _map_texts(entry, change) for key, entry in value.items()}
    if isinstance(value, list):
        return [_map_texts(entry, change) for entry in value]
    return value
