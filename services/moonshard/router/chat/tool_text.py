"""Tools as the TypeScript text in which K2.5 learned to read them. Pure.

Source: kimi-k2.5.md section 5.3, checked against the published encoder's behaviour. A schema that cannot be written
so turns the whole declaration into JSON, which the template then prints itself.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_INDENT = "  "

_CONSTRAINTS = {
    "string": ("maxLength", "minLength", "pattern"),
    "number": ("maximum", "minimum"),
    "integer": ("maximum", "minimum"),
    "array": ("maxItems", "minItems"),
}

_IN_UNION = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "null": "null",
    "object": "{}",
    "array": "Array<any>",
}

_PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
}


class _UnknownSchemaError(Exception):
    """Not to be written as TypeScript."""


@dataclass(frozen=True)
class _Type:
    """comments: lines above it. text: the type, given the indent of the line on which it begins."""

    text: Callable[[str], str]
    comments: tuple[str, ...] = ()

    def above(self, indent: str) -> str:
        return "".join(f"{indent}// {line}\n" if line else "\n" for line in self.comments)


@dataclass
class _Scope:
    """What `$ref` may name within one function."""

    definitions: dict[str, Any] = field(default_factory=dict)
    names_itself: bool = False


def declare_tools(tools: Sequence[Mapping[str, Any]]) -> str | None:
    """The declaration of tools in OpenAI's shape, keys sorted at every depth; None where JSON must do."""
    try:
        functions = [
            _function(tool["function"]) for tool in tools if tool.get("type") == "function" and tool["function"]
        ]
    except (_UnknownSchemaError, RecursionError):
        return None
    if not functions:
        return None
    return "\n".join(["# Tools", "", "## functions", "namespace functions {", *functions, "}", ""])


def _function(function: Mapping[str, Any]) -> str:
    scope = _Scope()
    root = function.get("parameters") or {}
    parameters, fields = _object(_checked(root, dict), scope)
    interfaces = [_root_interface(fields)] if scope.names_itself else []
    taken = "parameters" if scope.names_itself else parameters.text("")
    interfaces += [_interface(name, schema, scope) for name, schema in list(scope.definitions.items())]
    name = function.get("name", "function")
    comments = _Type(str, _description(function)).above("").removesuffix("\n")
    lines = [*interfaces, comments, f"type {name} = (_: {taken}) => any;"]
    return "\n".join(line for line in lines if line)


def _root_interface(fields: Sequence["_Field"]) -> str:
    written = ",\n".join(one.text(_INDENT) for one in fields)
    return f"interface parameters {{\n{written}\n}}" if written else "interface parameters {}"


def _interface(name: str, schema: Any, scope: _Scope) -> str:
    comments = _Type(str, _description(_checked(schema, dict))).above("")
    return f"{comments}interface {name} {_type(schema, scope).text('')}"


def _type(schema: Any, scope: _Scope) -> _Type:
    """The kinds in the order in which they are looked for."""
    if isinstance(schema, bool):
        return _Type(lambda indent: "any" if schema else "null")
    found = _checked(schema, dict)
    if "$ref" in found:
        return _reference(found, scope)
    if "anyOf" in found:
        return _any_of(found, scope)
    if "enum" in found:
        return _enum(found)
    if isinstance(found.get("type"), list):
        return _union(found)
    if "type" in found:
        return _named(found, scope)
    if not found:
        return _Type(lambda indent: "any")
    raise _UnknownSchemaError


def _reference(schema: dict[str, Any], scope: _Scope) -> _Type:
    path = _checked(schema["$ref"], str)
    name = path.split("/")[-1]
    if path == "#":
        scope.names_itself, name = True, "parameters"
    elif not path.startswith("#/$defs/") or not isinstance(scope.definitions.get(name), dict):
        raise _UnknownSchemaError
    return _Type(lambda indent: name, _description(schema))


def _any_of(schema: dict[str, Any], scope: _Scope) -> _Type:
    types = [_type(one, scope) for one in _checked(schema["anyOf"], list)]
    return _Type(lambda indent: " | ".join(one.text(indent) for one in types), _description(schema))


def _enum(schema: dict[str, Any]) -> _Type:
    """Texts in quotes, unescaped; other values as Python spells them."""
    values = _checked(schema["enum"], list)
    kind = _enum_kind(schema.get("type"))
    if not all(value is None or isinstance(value, _PYTHON_TYPES.get(kind, object)) for value in values):
        raise _UnknownSchemaError
    written = " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in values)
    return _Type(lambda indent: written, _description(schema))


def _enum_kind(kind: Any) -> str:
    if not isinstance(kind, list):
        return str(kind)
    if len(kind) == 1:
        return str(kind[0])
    if len(kind) == 2 and "null" in kind:
        return str(kind[1] if kind[0] == "null" else kind[0])
    raise _UnknownSchemaError


def _union(schema: dict[str, Any]) -> _Type:
    names = schema["type"]
    if not all(isinstance(name, str) and name in _IN_UNION for name in names):
        raise _UnknownSchemaError
    return _Type(lambda indent: " | ".join(_IN_UNION[name] for name in names), _description(schema))


def _named(schema: dict[str, Any], scope: _Scope) -> _Type:
    kind = _checked(schema["type"], str)
    if kind == "object":
        return _object(schema, scope)[0]
    if kind == "array":
        return _array(schema, scope)
    name = "number" if kind == "integer" else kind
    return _Type(lambda indent: name, _description(schema) + _constraints(schema, kind))


def _array(schema: dict[str, Any], scope: _Scope) -> _Type:
    item = _type(schema.get("items") or {}, scope)

    def text(indent: str) -> str:
        deeper = indent + _INDENT
        if not item.comments:
            return f"Array<{item.text(indent)}>"
        return f"Array<\n{item.above(deeper)}{deeper}{item.text(deeper)}\n{indent}>"

    return _Type(text, _description(schema) + _constraints(schema, "array"))


@dataclass(frozen=True)
class _Field:
    name: str
    type: _Type
    is_required: bool
    default: Any

    def text(self, indent: str) -> str:
        mark = "" if self.is_required else "?"
        return f"{self.type.above(indent)}{self._default(indent)}{indent}{self.name}{mark}: {self.type.text(indent)}"

    def _default(self, indent: str) -> str:
        if self.default is None:
            return ""
        plain = isinstance(self.default, int | float)
        return f"{indent}// Default: {self.default if plain else json.dumps(self.default, ensure_ascii=False)}\n"


def _object(schema: dict[str, Any], scope: _Scope) -> tuple[_Type, list[_Field]]:
    """The type, and its fields in the schema's order."""
    scope.definitions |= _checked(schema.get("$defs") or {}, dict)
    others = _others(schema.get("additionalProperties"), scope)
    required = _checked(schema.get("required", []), list)
    fields = [
        _Field(name, _type(one, scope), name in required, one.get("default") if isinstance(one, dict) else None)
        for name, one in _checked(schema.get("properties", {}), dict).items()
    ]
    in_order = sorted(fields, key=lambda one: (not one.is_required, one.name))

    def text(indent: str) -> str:
        deeper = indent + _INDENT
        lines = [one.text(deeper) for one in in_order]
        if others:
            lines.append(f"{deeper}[k: string]: {others.text(deeper)}")
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}" if lines else "{}"

    return _Type(text, _description(schema)), fields


def _others(schema: Any, scope: _Scope) -> _Type | None:
    if schema is None:
        return None
    if schema is False:
        return _Type(lambda indent: "never")
    return _type(schema, scope)


def _description(schema: Mapping[str, Any]) -> tuple[str, ...]:
    text = schema.get("description") or ""
    return tuple(_checked(text, str).split("\n")) if text else ()


def _constraints(schema: dict[str, Any], kind: str) -> tuple[str, ...]:
    found = [f"{name}: {schema[name]}" for name in _CONSTRAINTS.get(kind, ()) if name in schema]
    return (", ".join(found),) if found else ()


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise _UnknownSchemaError
    return value
