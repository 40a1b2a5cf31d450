"""Structural tags to shapes: free text with parts that are bound, as gateways ask for forced tool calls.

Two forms: xgrammar's {"type": "structural_tag", "format": {...}}, and the older {"structures": [...], "triggers":
[...]}. Spellings of special tokens in begin, end, trigger and const_string become those tokens. What is not known is
refused by name. Source: docs/structural_tag/structural_tag_api.md of xgrammar.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from moonshard.errors import RequestError
from moonshard.router.constraints.ebnf import to_lark
from moonshard.router.constraints.shapes import (
    Chain,
    Json,
    Lark,
    OneOf,
    Regex,
    Repeat,
    Shape,
    Special,
    Speller,
    Text,
)

MAX_DEPTH = 32


def parse_structural_tag(text: str, speller: Speller) -> Shape:
    """Raises RequestError naming the key."""
    tag = _parse_object(text)
    reader = _Reader(speller)
    if "structures" in tag:
        return reader.structures(tag)
    if tag.get("type", "structural_tag") != "structural_tag":
        raise _refusal("type", f"expected 'structural_tag', got {tag['type']!r}")
    return reader.read(_need(tag, "", "format", dict), "format")


class _Reader:
    """where: the path of keys to what is being read, for refusals."""

    def __init__(self, speller: Speller) -> None:
        self._spell = speller.spell
        self._kinds: dict[str, Callable[[dict[str, Any], str], Shape]] = {
            "const_string": lambda found, where: self._spell(_need(found, where, "value", str)),
            "json_schema": self._json_schema,
            "grammar": lambda found, where: Lark(to_lark(_need(found, where, "grammar", str))),
            "regex": lambda found, where: Regex(_need(found, where, "pattern", str)),
            "any_text": self._any_text,
            "token": self._token,
            "sequence": lambda found, where: Chain(self._elements(found, where)),
            "or": lambda found, where: OneOf(self._elements(found, where)),
            "optional": lambda found, where: Repeat(self._content(found, where), 0, 1),
            "star": lambda found, where: Repeat(self._content(found, where)),
            "plus": lambda found, where: Repeat(self._content(found, where), 1),
            "repeat": self._repeat,
            "tag": self._tag,
            "triggered_tags": self._triggered_tags,
            "tags_with_separator": self._tags_with_separator,
        }

    def read(self, found: Any, where: str) -> Shape:
        """A format object."""
        if where.count(".") > MAX_DEPTH:
            raise _refusal(where, f"nested deeper than {MAX_DEPTH}")
        kind = found.get("type") if isinstance(found, dict) else None
        if not isinstance(kind, str) or kind not in self._kinds:
            raise _refusal(f"{where}.type", f"expected one of {', '.join(self._kinds)}; got {kind!r}")
        return self._kinds[kind](found, where)

    def structures(self, found: dict[str, Any]) -> Shape:
        """The older form."""
        tags = [
            {"begin": entry.get("begin"), "content": {"type": "json_schema", "json_schema": entry.get("schema")},
             "end": entry.get("end")}
            for entry in _need_all(found, "", "structures", dict)
        ]  # fmt: skip
        return self._triggered_tags({"tags": tags, "triggers": found.get("triggers")}, "structures")

    def _json_schema(self, found: dict[str, Any], where: str) -> Shape:
        if found.get("style", "json") != "json":
            raise _refusal(f"{where}.style", f"expected 'json', got {found['style']!r}")
        schema = found.get("json_schema")
        if schema is True:
            return Json({})
        return Json(_need(found, where, "json_schema", dict))

    def _any_text(self, found: dict[str, Any], where: str) -> Shape:
        self._check_excludes(found, where)
        if found.get("max_tokens") is not None:
            raise _refusal(f"{where}.max_tokens", "is not served")
        return Text()

    def _check_excludes(self, found: dict[str, Any], where: str) -> None:
        """Free text never holds special tokens; other exclusions are not served."""
        for key in ("excludes", "excluded_str"):
            for text in found.get(key) or []:
                if not isinstance(text, str) or not isinstance(_only(self._spell(text)), Special):
                    raise _refusal(f"{where}.{key}", f"only special tokens can be excluded, got {text!r}")

    def _token(self, found: dict[str, Any], where: str) -> Shape:
        spelled = _only(self._spell(_need(found, where, "token", str)))
        if not isinstance(spelled, Special):
            raise _refusal(f"{where}.token", f"expected the name of a special token, got {found['token']!r}")
        return spelled

    def _elements(self, found: dict[str, Any], where: str) -> tuple[Shape, ...]:
        elements = _need_all(found, where, "elements", dict)
        return tuple(self.read(element, f"{where}.elements[{index}]") for index, element in enumerate(elements))

    def _content(self, found: dict[str, Any], where: str) -> Shape:
        return self.read(found.get("content"), f"{where}.content")

    def _repeat(self, found: dict[str, Any], where: str) -> Shape:
        least, most = _need(found, where, "min", int), _need(found, where, "max", int)
        if not (least >= 0 and (most == -1 or least <= most)):
            raise _refusal(f"{where}.max", f"must be -1 or at least min = {least}, got {most}")
        return Repeat(self._content(found, where), least, None if most == -1 else most)

    def _tag(self, found: dict[str, Any], where: str) -> Shape:
        begin = self._delimiter(found, where, "begin")
        return Chain((begin, self._content(found, where), self._end(found, where)))

    def _end(self, found: dict[str, Any], where: str) -> Shape:
        if isinstance(found.get("end"), list):
            return OneOf(tuple(self._spell(end) for end in _need_all(found, where, "end", str)))
        return self._delimiter(found, where, "end")

    def _delimiter(self, found: dict[str, Any], where: str, key: str) -> Shape:
        if isinstance(found.get(key), dict):
            return self._token(found[key], f"{where}.{key}")
        return self._spell(_need(found, where, key, str))

    def _tags(self, found: dict[str, Any], where: str) -> list[Shape]:
        tags = _need_all(found, where, "tags", dict)
        return [self._tag(tag, f"{where}.tags[{index}]") for index, tag in enumerate(tags)]

    def _tags_with_separator(self, found: dict[str, Any], where: str) -> Shape:
        tag = OneOf(tuple(self._tags(found, where)))
        separator = self._spell(_need(found, where, "separator", str))
        some = tag if found.get("stop_after_first") else Chain((tag, Repeat(Chain((separator, tag)))))
        return some if found.get("at_least_one") else Repeat(some, 0, 1)

    def _triggered_tags(self, found: dict[str, Any], where: str) -> Shape:
        """Free text until a trigger, then one of its tags; again until the end."""
        self._check_excludes(found, where)
        whole = OneOf(tuple(self._tags(found, where)))
        triggered = OneOf(tuple(self._text_and_tag(found, where)))
        only_one, first = bool(found.get("stop_after_first")), bool(found.get("at_least_one"))
        if only_one:
            return whole if first else OneOf((triggered, Text()))
        mixed = Chain((Repeat(triggered), Text()))
        return Chain((whole, mixed)) if first else mixed

    def _text_and_tag(self, found: dict[str, Any], where: str) -> list[Shape]:
        """For each trigger: free text, the trigger, and one of the remainders of its tags."""
        triggers = _need_all(found, where, "triggers", str)
        grouped: dict[str, list[Shape]] = {trigger: [] for trigger in triggers if trigger}
        for index, tag in enumerate(_need_all(found, where, "tags", dict)):
            here = f"{where}.tags[{index}]"
            trigger = _trigger_of(_need(tag, here, "begin", str), list(grouped), here)
            grouped[trigger].append(self._tag(tag | {"begin": tag["begin"].removeprefix(trigger)}, here))
        return [Chain((Text(), self._spell(trigger), OneOf(tuple(tags)))) for trigger, tags in grouped.items() if tags]


def _trigger_of(begin: str, triggers: Sequence[str], where: str) -> str:
    matching = [trigger for trigger in triggers if begin.startswith(trigger)]
    if not matching:
        raise _refusal(f"{where}.begin", f"{begin!r} begins with none of the triggers {list(triggers)}")
    return max(matching, key=len)


def _only(chain: Chain) -> Shape | None:
    return chain.shapes[0] if len(chain.shapes) == 1 else None


def _parse_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refusal("", f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise _refusal("", f"expected a JSON object, got {type(found).__name__}")
    return found


def _need(found: dict[str, Any], where: str, key: str, kind: type) -> Any:
    value = found.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        names = {dict: "an object", str: "a text", int: "a whole number", list: "a list"}
        raise _refusal(f"{where}.{key}".lstrip("."), f"expected {names[kind]}, got {str(value)[:80]!r}")
    return value


def _need_all(found: dict[str, Any], where: str, key: str, kind: type) -> list[Any]:
    """A list of at least one, all of a kind."""
    values = _need(found, where, key, list)
    if not values or not all(isinstance(value, kind) for value in values):
        raise _refusal(f"{where}.{key}".lstrip("."), f"expected a list of at least one {kind.__name__}")
    return list(values)


def _refusal(where: str, problem: str) -> RequestError:
    return RequestError("constraint", f"structural_tag: {where}: {problem}" if where else f"structural_tag: {problem}")
