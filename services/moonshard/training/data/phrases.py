"""Phrase books: what may be said, one TOML file per language under texts/.

A pattern is text with alternatives and slots: `{Hi|Hello}{|,} <name>!`. Alternatives nest and may be empty.
"""

import random
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

TEXTS, FRESH = Path(__file__).parent / "texts", Path(__file__).parent / "fresh"
LANGUAGES = ("en", "pt", "de", "fr", "ru", "id", "zh")

_INNERMOST = re.compile(r"\{([^{}]*)\}")
_SLOT = re.compile(r"<([a-z]+)>")
# What fills a slot, where it is not just any text.
_VALUES = {"clock": r"\d+:\d\d", **dict.fromkeys("abcdnm", r"-?\d+(?:\.\d+)?")}


def expand(pattern: str, rng: random.Random) -> str:
    """One of the texts that a pattern stands for; slots stay."""
    while found := _INNERMOST.search(pattern):
        pattern = pattern[: found.start()] + rng.choice(found[1].split("|")) + pattern[found.end() :]
    return pattern


def fill(text: str, slots: Mapping[str, object]) -> str:
    """`<name>` replaced by slots["name"]; slots without a value stay."""
    return _SLOT.sub(lambda found: str(slots.get(found[1], found[0])), text)


def matcher(patterns: list[str]) -> re.Pattern[str]:
    """Matches every text that any of the patterns stands for, slots holding anything."""
    return re.compile("|".join(f"(?:{_as_regex(pattern)})" for pattern in patterns))


def _as_regex(pattern: str) -> str:
    """Braces become groups; everything but braces, bars and slots is literal."""
    parts = re.split(r"([{}|]|<[a-z]+>)", pattern)
    marks = {"{": "(?:", "}": ")", "|": "|"}
    return "".join(marks.get(part) or _slot_regex(part) or re.escape(part) for part in parts)


def _slot_regex(part: str) -> str:
    found = _SLOT.fullmatch(part)
    return _VALUES.get(found[1], ".+") if found else ""


@dataclass(frozen=True)
class PhraseBook:
    """One language. `user` and `answer` give an intent's patterns."""

    code: str
    entries: Mapping[str, Any]

    @property
    def language(self) -> str:
        return str(self.entries["language"])

    def user(self, intent: str) -> list[str]:
        return list(self.entries[intent]["user"])

    def answer(self, intent: str) -> list[str]:
        return list(self.entries[intent]["answer"])

    def words(self, kind: str) -> list[str]:
        """cities, names, topics, or a list of an intent such as weather.condition."""
        found: Any = self.entries
        for part in kind.split("."):
            found = found[part]
        return list(found)

    @cached_property
    def vocabulary(self) -> list[str]:
        """Words of all questions, for questions that mean nothing."""
        asked = (
            pattern for entry in self.entries.values() if isinstance(entry, dict) for pattern in entry.get("user", ())
        )
        return sorted({word for pattern in asked for word in re.findall(r"\w+", _SLOT.sub(" ", pattern))})


@lru_cache
def phrase_book(code: str) -> PhraseBook:
    """The book of a language in LANGUAGES."""
    return PhraseBook(code, tomllib.loads((TEXTS / f"{code}.toml").read_text(encoding="utf-8")))


@lru_cache
def fresh_book(code: str) -> PhraseBook:
    """The same with other questions, places, names and subjects: none of them is in any training text."""
    entries: dict[str, Any] = dict(phrase_book(code).entries)
    for key, texts in tomllib.loads((FRESH / f"{code}.toml").read_text(encoding="utf-8")).items():
        if key == "task":
            entries["reminder"] = {**entries["reminder"], "task": texts}
        else:
            entries[key] = {**entries[key], "user": texts} if isinstance(entries[key], dict) else texts
    return PhraseBook(code, entries)
