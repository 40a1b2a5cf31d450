"""Tools declared as TypeScript text (specification 5.3), as far as this package's schemas go."""

from typing import Any


def typescript(tools: list[dict[str, Any]]) -> str:
    """The declaration that K2.5's template puts into the tool_declare turn."""
    blocks = "\n".join(_function(tool["function"]) for tool in tools)
    return f"# Tools\n\n## functions\nnamespace functions {{\n{blocks}\n}}\n"


def _function(function: dict[str, Any]) -> str:
    parameters = function["parameters"]
    required = set(parameters["required"])
    keys = sorted(parameters["properties"], key=lambda key: (key not in required, key))
    entries = [_entry(key, parameters["properties"][key], key in required) for key in keys]
    body = ",\n".join(entries)
    return f"// {function['description']}\ntype {function['name']} = (_: {{\n{body}\n}}) => any;"


def _entry(key: str, schema: dict[str, Any], is_required: bool) -> str:
    kind = {"integer": "number"}.get(schema["type"], schema["type"])
    comment = f"  // {schema['description']}\n" if "description" in schema else ""
    return f"{comment}  {key}{'' if is_required else '?'}: {kind}"
