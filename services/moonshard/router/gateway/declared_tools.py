"""What a gateway's prompt and constraint say of tools, as `chat` knows them. Pure."""

import json
from collections.abc import Sequence

from moonshard.router.chat.markers import Marker
from moonshard.router.chat.tool_choice import Mode, ToolChoice
from moonshard.router.chat.tools import Tool
from moonshard.router.gateway.prompts import Prompt
from moonshard.sampling import Constraint, ConstraintKind


def choice_of(prompt: Prompt, asked: Constraint | None) -> tuple[Sequence[Tool], ToolChoice] | None:
    """The tools that may be called and how, or None where the gateway's constraint stays as it is.

    asked: what the gateway sent. Its forced calls leave the model free to go on behind them, and its free ones bind no
    arguments: both are made anew from what the client declared. Any other constraint is the client's own.
    """
    tools = declared_tools(prompt.tools)
    if asked is None:
        return (tools, ToolChoice(Mode.AUTO)) if tools else None
    if asked.kind is not ConstraintKind.STRUCTURAL_TAG or Marker.SECTION.value not in asked.value:
        return None
    forced = [tool for tool in tools if f"functions.{tool.name}:" in asked.value]
    return (forced, ToolChoice(Mode.REQUIRED)) if forced else None


def declared_tools(text: str) -> Sequence[Tool]:
    """Of the client's JSON; what is no declaration is passed over, for the gateway has checked it by its own rules."""
    try:
        found = json.loads(text) if text else []
    except (ValueError, RecursionError):
        return ()
    functions = [tool.get("function") for tool in found if isinstance(tool, dict)] if isinstance(found, list) else []
    return [
        Tool(function["name"], "", parameters if isinstance(parameters := function.get("parameters"), dict) else None)
        for function in functions
        if isinstance(function, dict) and isinstance(function.get("name"), str)
    ]
