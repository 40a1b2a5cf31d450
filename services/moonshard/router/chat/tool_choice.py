"""What a request's tools and its tool choice ask of the sampler: a constraint in structural tags. Pure.

Source: kimi-k2.5.md section 5.4. Where a call is free or asked for, its arguments follow the tool's schema. The grammar
binds from the first token on: a call may begin in the middle of an open thought, which it ends, unless whoever reads
the reply finds no calls there (gateways).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from moonshard.errors import RequestError
from moonshard.router.chat.markers import Marker
from moonshard.router.chat.tools import Tool
from moonshard.sampling import Constraint, ConstraintKind, SamplingParams
from moonshard.tokenizer import Tokenizer

Format = dict[str, Any]

ANY_TEXT: Format = {"type": "any_text"}

# What is wrong with a JSON schema, None when it can be served.
SchemaProblem = Callable[[str], str | None]

_NEVER = -100.0
_OF_CALLS = (Marker.SECTION, Marker.SECTION_END, Marker.CALL, Marker.ARGUMENTS, Marker.CALL_END)


class Mode(Enum):
    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """name: a call of this tool, whatever the mode."""

    mode: Mode = Mode.AUTO
    name: str = ""

    @property
    def asks_for_call(self) -> bool:
        return bool(self.name) or self.mode is Mode.REQUIRED


class ToolBinder:
    """One per cell."""

    def __init__(self, tokenizer: Tokenizer, schema_problem: SchemaProblem) -> None:
        self._schema_problem = schema_problem
        tokens = tokenizer.special_tokens
        self._knows_calls = all(marker.value in tokens for marker in _OF_CALLS)
        self._openers = [tokens[name.value] for name in (Marker.SECTION, Marker.CALL) if name.value in tokens]

    def bind(
        self,
        sampling: SamplingParams,
        tools: Sequence[Tool],
        choice: ToolChoice,
        opens_thought: bool,
        calls_end_thoughts: bool = True,
    ) -> SamplingParams:
        """The sampling with what tools and choice demand. calls_end_thoughts: a call may begin in an open thought.

        Raises RequestError naming what cannot be had.
        """
        self._check(tools, choice)
        if choice.mode is Mode.NONE and not choice.name:
            return _without(sampling, self._openers) if tools else sampling
        if not tools or not self._knows_calls:
            return sampling
        chosen = [tool for tool in tools if choice.name in ("", tool.name)]
        section = self._section(chosen, choice, [tool.name for tool in tools])
        if choice.asks_for_call:
            shape = _sequence(*(_thought(calls_end_thoughts) if opens_thought else ()), section)
        else:
            shape = _free(sampling.constraint, section, opens_thought, calls_end_thoughts)
        tag = json.dumps({"type": "structural_tag", "format": shape}, ensure_ascii=False)
        return replace(sampling, constraint=Constraint(ConstraintKind.STRUCTURAL_TAG, tag, from_first_token=True))

    def _check(self, tools: Sequence[Tool], choice: ToolChoice) -> None:
        if not choice.asks_for_call:
            return
        if not self._knows_calls:
            raise RequestError("tool_choice", "this checkpoint has no tokens for tool calls")
        if not tools:
            raise RequestError("tool_choice", "asks for a call, but tools declares none")
        if choice.name and choice.name not in (tool.name for tool in tools):
            raise RequestError("tool_choice.name", f"{choice.name!r} is not among tools")

    def _section(self, tools: Sequence[Tool], choice: ToolChoice, names: Sequence[str]) -> Format:
        """A section of calls: one where the tool is named, else one or more."""
        calls = [self._call(tool, names.index(tool.name), choice.asks_for_call) for tool in tools]
        call = _sequence(_token(Marker.CALL), _text("functions."), _one_of(*calls), _token(Marker.CALL_END))
        some = call if choice.name else {"type": "plus", "content": call}
        return _sequence(_token(Marker.SECTION), some, _token(Marker.SECTION_END))

    def _call(self, tool: Tool, index: int, must_hold: bool) -> Format:
        header = (_text(f"{tool.name}:"), {"type": "regex", "pattern": "[0-9]{1,4}"}, _token(Marker.ARGUMENTS))
        return _sequence(*header, self._arguments(tool, index, must_hold))

    def _arguments(self, tool: Tool, index: int, must_hold: bool) -> Format:
        """An object of the tool's schema. One that cannot be served is refused only where a call is asked for."""
        schema = (tool.parameters or {}) | {"type": "object"}
        problem = self._schema_problem(json.dumps(schema))
        if problem and must_hold:
            raise RequestError(f"tools[{index}].parameters", f"cannot be followed: {problem}")
        return {"type": "json_schema", "json_schema": {"type": "object"} if problem else schema}


def _thought(calls_end_it: bool) -> Sequence[Format]:
    """An open thought in front of a call."""
    end = _token(Marker.THOUGHT_END)
    return ANY_TEXT, _optional(end) if calls_end_it else end


def _free(constraint: Constraint | None, section: Format, opens_thought: bool, calls_end_thoughts: bool) -> Format:
    """Content, calls, or both; where the content is bound, either."""
    if constraint is None:
        answer, calls = _sequence(ANY_TEXT, _optional(section)), _optional(section)
    else:
        answer, calls = _one_of(_content(constraint), section), section
    if not opens_thought:
        return answer
    behind = _sequence(_token(Marker.THOUGHT_END), answer)
    if calls_end_thoughts:
        return _sequence(ANY_TEXT, _one_of(behind, calls))
    # A thought that the length limit or the end of the turn cuts off is for the reader to tell.
    return _sequence(ANY_TEXT, behind if constraint else _optional(behind))


def _content(constraint: Constraint) -> Format:
    """A constraint as a part of a structural tag."""
    kind, value = constraint.kind, constraint.value
    if kind is ConstraintKind.JSON_SCHEMA:
        return {"type": "json_schema", "json_schema": _parsed(value)}
    if kind is ConstraintKind.JSON_OBJECT:
        return {"type": "json_schema", "json_schema": {"type": "object"}}
    if kind is ConstraintKind.REGEX:
        return {"type": "regex", "pattern": value}
    if kind is ConstraintKind.EBNF:
        return {"type": "grammar", "grammar": value}
    raise RequestError("constraint", f"{kind.value} cannot be combined with tools; leave them out, or tool_choice none")


def _parsed(schema: str) -> Any:
    try:
        return json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise RequestError("constraint", f"json_schema: not JSON: {error}") from None


def _without(sampling: SamplingParams, token_ids: Sequence[int]) -> SamplingParams:
    """The tokens are never drawn."""
    others = tuple((token_id, bias) for token_id, bias in sampling.logit_bias if token_id not in token_ids)
    return replace(sampling, logit_bias=others + tuple((token_id, _NEVER) for token_id in token_ids))


def _sequence(*elements: Format) -> Format:
    return {"type": "sequence", "elements": list(elements)}


def _one_of(*elements: Format) -> Format:
    return {"type": "or", "elements": list(elements)}


def _optional(content: Format) -> Format:
    return {"type": "optional", "content": content}


def _token(marker: Marker) -> Format:
    return {"type": "token", "token": marker.value}


def _text(value: str) -> Format:
    return {"type": "const_string", "value": value}
