"""From the options to the texts that tell of them: values.yaml, its schema, keys.json, the README's table."""

import copy
import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from moonshard.config import CellConfig
from moonshard_cluster.chart.options import Values

# What the chart works out for itself: a second place to set them would only invite contradictions.
OWNED = (
    ("checkpoint",),
    ("model_name",),
    ("num_shards",),
    ("num_attention",),
    ("min_attention",),
    ("links",),
    ("run_dir",),
    ("collective_address",),
    ("network",),
    ("gateway",),
    ("router", "host"),
    ("router", "port"),
    *(
        ("router", key)
        for key in ("tls_cert", "tls_key", "tls_client_ca", "tls_ca", "tls_worker_cert", "tls_worker_key")
    ),
    *(("router", key) for key in ("api_keys_file", "operator_key_file", "open_gateway")),
    ("metrics", "host"),
    ("metrics", "base_port"),
    ("metrics", "worker_port"),
    ("timeouts", "drain_s"),
)
TABLE_BEGIN, TABLE_END = "<!-- values: begin (generated) -->", "<!-- values: end -->"


def values_schema() -> dict[str, Any]:
    """JSON Schema of values.yaml: the chart's options, with the cell's configuration under `config`.

    Checks values, not keys: Helm asks it first, and it could only say that a key is not allowed. `keys.json` names the
    nearest one.
    """
    return {"$schema": "http://json-schema.org/draft-07/schema#", **_with_open_levels(_closed_schema())}


def known_keys() -> dict[str, Any]:
    """The tree of keys that templates/_keys.tpl holds the values against.

    A level is an object; a key that takes anything beneath it is true, one that only the chart sets is false.
    """
    tree = _tree(_closed_schema())
    assert isinstance(tree, dict)
    for path in OWNED:
        level = tree["config"]
        for key in path[:-1]:
            level = level[key]
        level[path[-1]] = False
    return tree


def _closed_schema() -> dict[str, Any]:
    schema = inline(Values.model_json_schema(by_alias=True))
    schema["properties"]["config"] = cell_schema()
    # Helm hands every chart the globals of its parents.
    schema["properties"]["global"] = {"type": "object"}
    return schema


def _tree(schema: dict[str, Any]) -> dict[str, Any] | bool:
    if "properties" not in schema:
        return True
    assert schema["additionalProperties"] is False, f"a level with other keys than its own: {sorted(schema)}"
    return {key: _tree(child) for key, child in schema["properties"].items()}


def _with_open_levels(node: Any) -> Any:
    if isinstance(node, list):
        return [_with_open_levels(item) for item in node]
    if not isinstance(node, dict):
        return node
    closed = node.get("additionalProperties") is False
    return {k: _with_open_levels(v) for k, v in node.items() if not (closed and k == "additionalProperties")}


def cell_schema() -> dict[str, Any]:
    """Of the cell's configuration without the keys that the chart sets itself; nothing is required."""
    schema = inline(CellConfig.model_json_schema())
    for path in OWNED:
        level = schema
        for key in path[:-1]:
            level = level["properties"][key]
        level["properties"].pop(path[-1], None)
    del schema["required"]
    schema["description"] = "the cell's own configuration, key by key as in the TOML of `moonshard up`"
    return schema


def inline(schema: dict[str, Any]) -> dict[str, Any]:
    """Without references: not every validator in Helm's history follows them. Titles go, they only repeat the keys."""
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            target = definitions[node["$ref"].rpartition("/")[2]]
            node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
        return {key: resolve_value(key, value) for key, value in node.items() if key not in ("title", "format")}

    def resolve_value(key: str, value: Any) -> Any:
        # The children of `properties` are named by the user: a field may well be called "title".
        return {name: resolve(child) for name, child in value.items()} if key == "properties" else resolve(value)

    resolved = resolve(copy.deepcopy(schema))
    assert isinstance(resolved, dict)
    return resolved


def values_yaml() -> str:
    """values.yaml with a comment before every key that has something to say."""
    head = "# Written by `python -m moonshard_cluster.chart` from its options.py: change it there.\n\n"
    return head + "\n".join(_yaml_lines(Values(), 0)) + "\n"


def _yaml_lines(level: BaseModel, depth: int) -> Iterator[str]:
    pad = "  " * depth
    for name, field in type(level).model_fields.items():
        value = getattr(level, name)
        if field.description:
            yield f"{pad}# {field.description}"
        if isinstance(value, BaseModel):
            yield f"{pad}{field.alias}:"
            yield from _yaml_lines(value, depth + 1)
        else:
            yield f"{pad}{field.alias}: {json.dumps(value)}"


def values_table() -> str:
    """Markdown: key, default, what it does."""
    rows = ["| key | default | |", "| --- | --- | --- |"]
    rows += [f"| `{key}` | `{json.dumps(value)}` | {text} |" for key, value, text in _options(Values(), "")]
    return "\n".join(rows)


def _options(level: BaseModel, prefix: str) -> Iterator[tuple[str, Any, str]]:
    for name, field in type(level).model_fields.items():
        key, value, text = f"{prefix}{field.alias}", getattr(level, name), (field.description or "").replace("|", "\\|")
        if isinstance(value, BaseModel):
            yield from _options(value, f"{key}.")
        else:
            yield key, value, text


def with_table(readme: str) -> str:
    """The README with its table renewed between the two markers."""
    before, _, rest = readme.partition(TABLE_BEGIN)
    _, _, after = rest.partition(TABLE_END)
    assert after, "the chart's README has the two markers"
    return f"{before}{TABLE_BEGIN}\n\n{values_table()}\n\n{TABLE_END}{after}"
