"""Whether an answer is right: pure functions from a dialogue and the text that a model gave for it."""

import json
import re
from typing import Any

from moonshard.training.data.dialogue import Dialogue
from moonshard.training.data.phrases import matcher, phrase_book

_CALL = re.compile(
    r"<\|tool_calls_section_begin\|><\|tool_call_begin\|>functions\.([\w.-]+):0<\|tool_call_argument_begin\|>"
    r"(.*?)<\|tool_call_end\|><\|tool_calls_section_end\|>",
    re.DOTALL,
)
_TYPES = {"string": str, "number": int | float, "integer": int}


def is_closed(dialogue: Dialogue, text: str) -> bool:
    """Whether reasoning ended, once; true of instant answers that hold no marker at all."""
    return text.count("</think>") == int(dialogue.thinking) and "<think>" not in text


def content(dialogue: Dialogue, text: str) -> str:
    """What follows the reasoning; nothing when it was never closed."""
    return text.partition("</think>")[2] if dialogue.thinking else text


def is_right(dialogue: Dialogue, text: str) -> bool:
    """Whether the answer is one that the generators could have given (a call: right tool, right arguments)."""
    answer = content(dialogue, text)
    if dialogue.task == "tool call":
        return parse_call(answer) == (str(dialogue.expected["name"]), dialogue.expected["arguments"])
    if dialogue.task == "json":
        return bool(_json(answer) == dialogue.expected)
    book, intent = phrase_book(dialogue.language), _intent(dialogue)
    if not matcher(book.answer(intent)).fullmatch(answer):
        return False
    return dialogue.task == "talk" or _numbers(answer)[-1:] == _numbers(_right(dialogue))[-1:]


def is_valid_call(dialogue: Dialogue, text: str) -> bool:
    """The right tool with arguments valid against its schema, whatever their values."""
    call = parse_call(content(dialogue, text))
    if call is None or call[0] != dialogue.expected["name"]:
        return False
    schema = next(t["function"] for t in dialogue.tools if t["function"]["name"] == call[0])["parameters"]
    known = schema["properties"]
    return set(schema["required"]) <= set(call[1]) <= set(known) and all(
        isinstance(value, _TYPES[known[key]["type"]]) for key, value in call[1].items()
    )


def parse_call(answer: str) -> tuple[str, dict[str, Any]] | None:
    """(name, arguments) of an answer that is one well-formed call and nothing else."""
    found = _CALL.fullmatch(answer)
    arguments = _json(found[2]) if found else None
    return (found[1], arguments) if found and isinstance(arguments, dict) else None


def _intent(dialogue: Dialogue) -> str:
    return str(dialogue.expected) if dialogue.task in ("talk", "tool answer") else dialogue.task


def _right(dialogue: Dialogue) -> str:
    return str(dialogue.messages[-1]["content"])


def _numbers(text: str) -> list[str]:
    return re.findall(r"-?\d+(?:[.:]\d+)?", text)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
