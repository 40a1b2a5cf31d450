"""Tools as TypeScript text: the specification's vector, every kind of schema, and what falls back to JSON."""

from typing import Any

import pytest

from moonshard.router.chat.tool_text import declare_tools
from moonshard.router.chat_messages import sort_keys

HEAD = "# Tools\n\n## functions\nnamespace functions {\n"


def declare(parameters: Any, name: str = "f", **function: Any) -> str | None:
    tool = {"type": "function", "function": {"name": name, "parameters": parameters} | function}
    return declare_tools([sort_keys(tool)])


def fields(*properties: str) -> str:
    """The declaration of a function with these lines."""
    return f"{HEAD}type f = (_: {{\n" + "\n".join(properties) + "\n}) => any;\n}\n"


def one(schema: Any) -> str | None:
    """The declaration of a function with one optional parameter."""
    return declare({"type": "object", "properties": {"x": schema}})


def test_the_specifications_vector() -> None:
    parameters = {
        "type": "object",
        "properties": {
            "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
            "city": {"type": "string", "description": "City name"},
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
        },
        "required": ["city"],
    }
    assert declare(parameters, "get_weather", description="Weather of a city\n\nfor some days") == (
        f"{HEAD}"
        "// Weather of a city\n"
        "\n"
        "// for some days\n"
        "type get_weather = (_: {\n"
        "  // City name\n"
        "  city: string,\n"
        "  // maximum: 7, minimum: 1\n"
        "  days?: number,\n"
        '  // Default: "c"\n'
        '  unit?: "c" | "f"\n'
        "}) => any;\n"
        "}\n"
    )


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string"}, "string"),
        ({"type": "number"}, "number"),
        ({"type": "integer"}, "number"),
        ({"type": "boolean"}, "boolean"),
        ({"type": "null"}, "null"),
        ({}, "any"),
        (True, "any"),
        (False, "null"),
        ({"type": "array"}, "Array<any>"),
        ({"type": "array", "items": {}}, "Array<any>"),
        ({"type": "array", "items": False}, "Array<any>"),
        ({"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}, "Array<Array<number>>"),
        ({"type": "object"}, "{}"),
        ({"type": "object", "properties": {}}, "{}"),
        ({"type": "object", "additionalProperties": True}, "{\n    [k: string]: any\n  }"),
        ({"type": "object", "additionalProperties": False}, "{\n    [k: string]: never\n  }"),
        ({"type": "object", "additionalProperties": None}, "{}"),
        (
            {
                "type": "object",
                "properties": {"a": {}},
                "additionalProperties": {"type": "object", "properties": {"b": {}}},
            },
            "{\n    a?: any,\n    [k: string]: {\n      b?: any\n    }\n  }",
        ),
        ({"enum": ["a", 'b"c', 1, 1.5, None, True]}, '"a" | "b"c" | 1 | 1.5 | None | True'),
        ({"type": "integer", "enum": [1, 2]}, "1 | 2"),
        ({"type": ["string", "null"], "enum": ["a", None]}, '"a" | None'),
        ({"type": ["string"], "enum": ["a"]}, '"a"'),
        (
            {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "number"}}, {"type": "null"}]},
            "string | Array<number> | null",
        ),
        ({"anyOf": [{"type": "string"}], "enum": [1]}, "string"),
        (
            {"type": ["string", "integer", "boolean", "null", "object", "array", "number"]},
            "string | number | boolean | null | {} | Array<any> | number",
        ),
    ],
)
def test_types(schema: Any, text: str) -> None:
    assert one(schema) == fields(f"  x?: {text}")


@pytest.mark.parametrize(
    ("schema", "comments"),
    [
        ({"type": "string", "description": "one\n\ntwo"}, ["  // one", "", "  // two"]),
        (
            {"type": "string", "pattern": "^a$", "minLength": 1, "maxLength": 3},
            ["  // maxLength: 3, minLength: 1, pattern: ^a$"],
        ),
        ({"type": "number", "minimum": 0.5, "pattern": "no"}, ["  // minimum: 0.5"]),
        ({"type": "string", "minimum": 1}, []),
        ({"type": "string", "default": "größe"}, ['  // Default: "größe"']),
        ({"type": "object", "default": {"b": [1, None], "a": True}}, ['  // Default: {"a": true, "b": [1, null]}']),
        ({"type": "boolean", "default": True}, ["  // Default: True"]),
        ({"type": "boolean", "default": False}, ["  // Default: False"]),
        ({"type": "number", "default": 1.0}, ["  // Default: 1.0"]),
        ({"type": "string", "default": None}, []),
        (
            {"type": "string", "description": "d", "minLength": 1, "default": "x"},
            ["  // d", "  // minLength: 1", '  // Default: "x"'],
        ),
        ({"type": ["string"], "description": "d", "minLength": 1}, ["  // d"]),
        ({"anyOf": [{"type": "string", "description": "lost"}], "description": "d"}, ["  // d"]),
    ],
)
def test_comments(schema: Any, comments: list[str]) -> None:
    kind = {"object": "{}"}.get(schema.get("type") if isinstance(schema.get("type"), str) else "")
    text = kind or ("string" if "string" in str(schema) else str(schema["type"]))
    assert one(schema) == fields(*comments, f"  x?: {text}")


def test_required_first_then_optional_each_by_name() -> None:
    properties = {name: {"type": "null"} for name in ("d", "c", "b", "a")}
    declared = declare({"type": "object", "properties": properties, "required": ["d", "b", "nowhere"]})
    assert declared == fields("  b: null,", "  d: null,", "  a?: null,", "  c?: null")


def test_nested_objects_and_items_with_comments() -> None:
    item = {
        "type": "object",
        "description": "an item",
        "properties": {"id": {"type": "integer", "description": "its id"}},
    }
    schema = {"type": "array", "description": "all", "minItems": 1, "maxItems": 2, "items": item}
    assert one(schema) == fields(
        "  // all",
        "  // maxItems: 2, minItems: 1",
        "  x?: Array<",
        "    // an item",
        "    {",
        "      // its id",
        "      id?: number",
        "    }",
        "  >",
    )


def test_references_become_interfaces() -> None:
    node = {"type": "object", "description": "A node", "properties": {"next": {"$ref": "#/$defs/Node"}}}
    parameters = {
        "type": "object",
        "properties": {"root": {"$ref": "#/$defs/Node", "description": "where"}},
        "$defs": {"Node": node, "Color": {"enum": ["red"]}},
    }
    assert declare(parameters) == (
        f'{HEAD}interface Color "red"\n// A node\ninterface Node {{\n  next?: Node\n}}\n'
        "type f = (_: {\n  // where\n  root?: Node\n}) => any;\n}\n"
    )


def test_a_schema_that_refers_to_itself() -> None:
    properties = {"b": {"type": "string"}, "child": {"$ref": "#"}, "a": {"type": "null"}}
    declared = declare({"type": "object", "properties": properties, "required": ["b"]}, description="d")
    assert declared == (
        f"{HEAD}interface parameters {{\n  a?: null,\n  b: string,\n  child?: parameters\n}}\n"
        "// d\ntype f = (_: parameters) => any;\n}\n"
    )


def test_several_tools_and_other_kinds() -> None:
    tools = [
        {"type": "function", "function": {"name": "a"}},
        {"type": "_plugin", "function": {"name": "b"}},
        {"type": "function", "function": {}},
        {"type": "function", "function": {"name": "c", "parameters": None}},
    ]
    assert declare_tools(tools) == f"{HEAD}type a = (_: {{}}) => any;\ntype c = (_: {{}}) => any;\n}}\n"
    assert declare_tools([]) is None
    assert declare_tools(tools[1:3]) is None


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"type": "string"}]},
        {"const": 1},
        {"description": "no type"},
        {"$ref": "#/definitions/A"},
        {"$ref": "#/$defs/Missing"},
        {"$ref": 3},
        {"type": ["string", "nope"]},
        {"type": [["string"]]},
        {"type": 3},
        {"type": "string", "enum": [1]},
        {"type": "integer", "enum": ["a"]},
        {"type": ["string", "integer"], "enum": ["a"]},
        {"type": ["string", "integer", "null"], "enum": ["a"]},
        {"enum": "abc"},
        {"anyOf": {"type": "string"}},
        {"type": "object", "additionalProperties": "yes"},
        {"type": "object", "properties": [1]},
        {"type": "object", "required": "x"},
        {"type": "string", "description": ["no text"]},
        "string",
        None,
        deep(600),
    ],
)
def test_unknown_schemas_fall_back_to_json(schema: Any) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": schema}}}}
    assert declare_tools([{"type": "function", "function": {"name": "fine"}}, tool]) is None
