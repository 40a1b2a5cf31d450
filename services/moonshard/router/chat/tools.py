"""Tools as a caller declares them, checked. Pure."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from moonshard.errors import RequestError

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Tool:
    """parameters: a JSON schema; None declares none."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = field(default=None, hash=False)

    def as_dict(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        function: dict[str, Any] = {"name": self.name}
        if self.description:
            function["description"] = self.description
        if self.parameters is not None:
            function["parameters"] = self.parameters
        return {"type": "function", "function": function}


def check_tools(tools: Sequence[Tool]) -> None:
    """Raises RequestError naming tools[i].field."""
    if len(tools) > MAX_TOOLS:
        raise RequestError("tools", f"must be at most {MAX_TOOLS}, got {len(tools)}")
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        if not _NAME.fullmatch(tool.name):
            raise RequestError(f"tools[{index}].name", f"expected 1 to 64 of A-Z a-z 0-9 _ . -, got {tool.name[:80]!r}")
        if tool.name in seen:
            raise RequestError(f"tools[{index}].name", f"{tool.name!r} is declared twice")
        seen.add(tool.name)


def parse_parameters(index: int, text: str) -> dict[str, Any] | None:
    """The schema of tools[index]. Raises RequestError."""
    if not text:
        return None
    where = f"tools[{index}].parameters"
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(where, f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise RequestError(where, f"expected a JSON schema, got {text[:80]!r}")
    return found
