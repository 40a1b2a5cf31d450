"""Tool calls in a reply: a header, then arguments, which go out as they come. Pure.

Source: kimi-k2.5.md section 5.4. Headers that name no tool occur; then the arguments tell which tool is meant.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from moonshard.router.chat.call_ids import call_id, name_in
from moonshard.router.chat.tools import Tool


@dataclass(frozen=True, slots=True)
class CallDelta:
    """News of one call. index: within the reply. id and name come with the call's first delta."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class CallReader:
    """first_index: calls made in the conversation before this reply."""

    def __init__(self, tools: Sequence[Tool], first_index: int) -> None:
        self.num_calls = 0
        self._tools = tools
        self._first_index = first_index
        self._header: list[str] = []
        self._arguments: list[str] | None = None  # None: still in the header
        self._is_announced = False
        self._is_empty = True

    def begin(self) -> None:
        self._header, self._arguments = [], None
        self._is_announced, self._is_empty = False, True

    def begin_arguments(self) -> list[CallDelta]:
        """Behind the header. A call whose tool is not known yet waits for its end."""
        if self._arguments is not None:
            return []
        self._arguments = []
        name = name_in("".join(self._header))
        return [self._announce(name)] if name else []

    def text(self, text: str) -> list[CallDelta]:
        if self._arguments is None:
            self._header.append(text)
            return []
        if self._is_empty:
            text = text.lstrip()
        if not text:
            return []
        self._is_empty = False
        if not self._is_announced:
            self._arguments.append(text)
            return []
        return [CallDelta(self.num_calls - 1, arguments=text)]

    def end(self, is_cut: bool = False) -> list[CallDelta]:
        """is_cut: the reply ended in the middle of the call; one that is still in its header was none."""
        deltas: list[CallDelta] = []
        if self._arguments is None:
            deltas = [] if is_cut else self.begin_arguments()
        if not self._is_announced and self._arguments:
            deltas = [self._announce(self._meant()), CallDelta(self.num_calls - 1, arguments="".join(self._arguments))]
        if self._is_announced and self._is_empty and not is_cut:
            deltas.append(CallDelta(self.num_calls - 1, arguments="{}"))
        return deltas

    def _announce(self, name: str) -> CallDelta:
        self._is_announced = True
        self.num_calls += 1
        index = self.num_calls - 1
        return CallDelta(index, call_id(name, self._first_index + index), name)

    def _meant(self) -> str:
        assert self._arguments is not None, "asked behind the header"
        return tool_meant("".join(self._arguments), self._tools) or "".join(self._header).strip()


def tool_meant(arguments: str, tools: Sequence[Tool]) -> str:
    """The tool that takes these arguments: the one with most of the keys, required ones first. "" when none does."""
    if len(tools) == 1:
        return tools[0].name
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return ""
    keys = set(found) if isinstance(found, dict) else set()
    fitting = [(tool, _properties(tool)) for tool in tools]
    fitting = [(tool, known) for tool, known in fitting if keys and keys <= known]
    if not fitting:
        return ""
    return min(fitting, key=lambda pair: (not _required(pair[0]) <= keys, len(pair[1])))[0].name


def _properties(tool: Tool) -> set[str]:
    properties = (tool.parameters or {}).get("properties")
    return set(properties) if isinstance(properties, dict) else set()


def _required(tool: Tool) -> set[str]:
    required = (tool.parameters or {}).get("required")
    return {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
