"""Writes a shape down as a grammar that llguidance reads. Pure.

Source: docs/syntax.md and docs/json_schema.md of llguidance. In its lexer the longest match wins, so free text would
swallow a literal behind it; such a pair becomes one lazy terminal, which ends where the literal first appears.
"""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from moonshard.errors import RequestError
from moonshard.router.constraints.shapes import Chain, Json, Lark, Literal, OneOf, Regex, Repeat, Shape, Special, Text

# Between two JSON tokens: nothing, a space, or a new line and its indent. Without a bound models get lost in spaces.
_JSON_OPTIONS = {"whitespace_pattern": r" |\n {0,64}"}

# A pair of backslash and character stays as it is.
_BREAKS_SLASHES = re.compile(r"\\.|/|\n", re.DOTALL)


def write_grammar(shape: Shape) -> str:
    """The text of a grammar. Raises RequestError for shapes that cannot be told apart."""
    writer = _Writer()
    start = writer.chain((shape,), ends_text=True)
    main = {"name": "main", "lark_grammar": "\n".join([f"start: {start}", *writer.rules])}
    return json.dumps({"grammars": [main, *writer.grammars]}, ensure_ascii=False)


class _Writer:
    """rules: lines that the expressions refer to. grammars: others that they include."""

    def __init__(self) -> None:
        self.rules = ["TEXT: /(.|\\n)*/"]
        self.grammars: list[dict[str, str]] = []

    def chain(self, shapes: Sequence[Shape], ends_text: bool) -> str:
        """An expression. ends_text: whether what follows the shapes ends a free text in front of it."""
        parts = list(_flat(shapes))
        after = _ends_from(parts, ends_text)
        written: list[str] = []
        index = 0
        while index < len(parts):
            part, stops = parts[index], _literals(parts[index + 1]) if index + 1 < len(parts) else []
            if isinstance(part, Text) and stops:
                written.append(self._text_until(stops))
                index += 1
            else:
                written.append(self._shape(part, after[index + 1]))
            index += 1
        return " ".join(written) or '""'

    def _text_until(self, stops: list[str]) -> str:
        name = f"until_{len(self.rules)}"
        self.rules.append(f"{name}[lazy]: TEXT ({' | '.join(map(_quoted, stops))})")
        return name

    def _shape(self, shape: Shape, ends_text: bool) -> str:
        match shape:
            case Text():
                return _text(ends_text)
            case Literal(text):
                return _quoted(text)
            case Special(token_id):
                return f"<[{token_id}]>"
            case Json(schema):
                return f"%json {json.dumps({'x-guidance': _JSON_OPTIONS} | dict(schema), ensure_ascii=False)}"
            case Regex(pattern):
                return f"/{_between_slashes(pattern)}/"
            case Lark(grammar):
                return self._include(grammar)
            case OneOf(shapes):
                return f"({' | '.join(self.chain((one,), ends_text) for one in shapes)})"
            case Repeat(inner):
                again = ends_text and _ends(inner, ends_text)
                return f"({self.chain((inner,), again)}){_times(shape)}"
            case Chain():
                raise AssertionError("a chain is flat here")

    def _include(self, grammar: str) -> str:
        name = f"included_{len(self.grammars)}"
        self.grammars.append({"name": name, "lark_grammar": grammar})
        return f"@{name}"


def _text(ends_text: bool) -> str:
    if not ends_text:
        raise RequestError(
            "constraint", "any_text must be followed by a text, by a special token, or by the end of the output"
        )
    return "TEXT"


def _flat(shapes: Sequence[Shape]) -> Iterator[Shape]:
    """Without chains; texts that touch are one."""
    for kind, group in groupby(_unchained(shapes), type):
        if kind is Literal:
            yield Literal("".join(shape.text for shape in group if isinstance(shape, Literal)))
        elif kind is Text:
            yield Text()
        else:
            yield from group


def _unchained(shapes: Sequence[Shape]) -> Iterator[Shape]:
    for shape in shapes:
        if isinstance(shape, Chain):
            yield from _unchained(shape.shapes)
        else:
            yield shape


def _literals(shape: Shape) -> list[str]:
    """The texts, when the shape is nothing but a choice of texts."""
    if isinstance(shape, Literal):
        return [shape.text]
    if isinstance(shape, OneOf):
        found = [list(_flat((one,))) for one in shape.shapes]
        if all(len(parts) == 1 and isinstance(parts[0], Literal) for parts in found):
            return [parts[0].text for parts in found if isinstance(parts[0], Literal)]
    return []


def _ends_from(parts: Sequence[Shape], ends_text: bool) -> list[bool]:
    """For every place between the parts: whether a free text in front of it ends there, in every case."""
    found = [ends_text]
    for part in reversed(parts):
        found.append(_ends(part, found[-1]))
    return found[::-1]


def _ends(shape: Shape, after: bool) -> bool:
    """Whether a free text ends where the shape begins. after: the same of what follows the shape."""
    match shape:
        case Special():
            return True
        case Text():
            return after
        case Chain(shapes):
            return _ends_from(shapes, after)[0]
        case OneOf(shapes):
            return all(_ends(one, after) for one in shapes)
        case Repeat(inner, at_least):
            return _ends(inner, after and _ends(inner, after)) and (at_least > 0 or after)
        case _:
            return False


def _times(repeat: Repeat) -> str:
    bounds = (repeat.at_least, repeat.at_most)
    short = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    most = "" if repeat.at_most is None else repeat.at_most
    return short.get(bounds) or f"{{{repeat.at_least},{most}}}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _between_slashes(pattern: str) -> str:
    return _BREAKS_SLASHES.sub(lambda found: {"/": r"\/", "\n": r"\n"}.get(found[0], found[0]), pattern)
