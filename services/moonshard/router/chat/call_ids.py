"""Ids of tool calls. K2.5 reads and writes functions.NAME:INDEX, where INDEX counts the conversation's calls.

Pure. Source: kimi-k2.5.md section 5.4.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any

_CANONICAL = re.compile(r"functions\.[^\s:]+:[0-9]+")
_INDEX = re.compile(r":[0-9]+$")

Message = dict[str, Any]


def call_id(name: str, index: int) -> str:
    return f"functions.{name}:{index}"


def name_in(header: str) -> str:
    """The tool that a header of the model names, "" when it names none: headers of digits only occur."""
    name = _INDEX.sub("", header.strip().removeprefix("functions."))
    return "" if name.isdecimal() else name


def num_calls(messages: list[Message]) -> int:
    """Calls made so far: the index of the next one."""
    return sum(len(message.get("tool_calls") or ()) for message in messages)


def with_canonical_ids(messages: list[Message]) -> list[Message]:
    """Other servers' ids (call_abc) in the model's form, in calls and in their results. Others stay as they are.

    The template prints ids as they are, and the model imitates what it sees.
    """
    taken = {call["id"] for message in messages for call in message.get("tool_calls") or ()}
    return list(_rewrite(messages, taken))


def _rewrite(messages: list[Message], taken: set[str]) -> Iterator[Message]:
    renamed: dict[str, str] = {}
    index = 0
    for message in messages:
        calls = message.get("tool_calls") or ()
        for number, call in enumerate(calls, index):
            renamed[call["id"]] = _canonical(call, number, taken)
        index += len(calls)
        if calls:
            yield message | {"tool_calls": [call | {"id": renamed[call["id"]]} for call in calls]}
        elif message.get("tool_call_id") in renamed:
            yield message | {"tool_call_id": renamed[message["tool_call_id"]]}
        else:
            yield message


def _canonical(call: Message, index: int, taken: set[str]) -> str:
    """The call's own id where it is canonical, else the first free one from its index on."""
    name = call["function"].get("name")
    if not name or _CANONICAL.fullmatch(call["id"]):
        return str(call["id"])
    found = next(new for number in itertools.count(index) if (new := call_id(name, number)) not in taken)
    taken.add(found)
    return found
