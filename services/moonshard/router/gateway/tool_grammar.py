"""Grammars that hold tool calls to the declared schemas: what the model may say when tools are declared. Pure.

Sources: specification 5.4; xgrammar's structural tags, which `constraints` reads.
"""

import json
from collections.abc import Sequence
from typing import Any

from moonshard.router.gateway.prompts import Prompt
from moonshard.sampling import Constraint, ConstraintKind

SECTION_BEGIN, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL_BEGIN, ARGUMENTS_BEGIN, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
THOUGHT_END = "</think>"

_TEXT = {"type": "any_text"}


def tool_constraint(prompt: Prompt, asked: Constraint | None) -> Constraint | None:
    """The constraint for a prompt with declared tools, or None where it has nothing to add.

    asked: what the gateway sent. Its forced tool calls leave the model free to go on behind the calls; these end there.
    Without a constraint, calls stay the model's choice and only their arguments are bound.
    """
    tools = _functions(prompt.tools)
    if asked is None:
        return _constraint(_free(prompt, _optional(_section(tools)))) if tools else None
    if asked.kind is not ConstraintKind.STRUCTURAL_TAG or SECTION_BEGIN not in asked.value:
        return None
    forced = [tool for tool in tools if f"functions.{tool['name']}:" in asked.value]
    return _constraint([*_thought(prompt), _section(forced)]) if forced else None


def _free(prompt: Prompt, calls: dict[str, Any]) -> list[dict[str, Any]]:
    """Text and maybe calls; a thought in front of them must have been ended, for a gateway reads none inside it."""
    answer = [_TEXT, calls]
    return [_TEXT, _optional(_sequence([_string(THOUGHT_END), *answer]))] if prompt.opens_thought else answer


def _functions(text: str) -> list[dict[str, Any]]:
    try:
        tools = json.loads(text) if text else []
    except ValueError:
        return []
    found = [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return [tool for tool in found if isinstance(tool, dict) and isinstance(tool.get("name"), str)]


def _thought(prompt: Prompt) -> list[dict[str, Any]]:
    return [_TEXT, _string(THOUGHT_END)] if prompt.opens_thought else []


def _section(tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
    calls = {"type": "plus", "content": {"type": "or", "elements": [_call(tool) for tool in tools]}}
    return _sequence([_string(SECTION_BEGIN), calls, _string(SECTION_END)])


def _call(tool: dict[str, Any]) -> dict[str, Any]:
    schema = tool.get("parameters") or {"type": "object"}
    return _sequence(
        [
            _string(f"{CALL_BEGIN}functions.{tool['name']}:"),
            {"type": "regex", "pattern": "[0-9]{1,3}"},
            _string(ARGUMENTS_BEGIN),
            {"type": "json_schema", "json_schema": schema},
            _string(CALL_END),
        ]
    )


def _constraint(elements: list[dict[str, Any]]) -> Constraint:
    tag = {"type": "structural_tag", "format": _sequence(elements)}
    return Constraint(ConstraintKind.STRUCTURAL_TAG, json.dumps(tag, ensure_ascii=False), from_first_token=True)


def _sequence(elements: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "sequence", "elements": elements}


def _optional(content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "optional", "content": content}


def _string(value: str) -> dict[str, Any]:
    return {"type": "const_string", "value": value}
