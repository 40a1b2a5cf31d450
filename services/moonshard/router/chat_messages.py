"""Checks chat messages before a template sees them; a refusal names the message and the field."""

from collections.abc import Iterable
from typing import Any

from moonshard.errors import RequestError

ROLES = ("system", "user", "assistant", "tool")

_MEDIA = ("image", "image_url", "video", "video_url")


def check_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with nulls left out, so that templates see "missing" in one form. Raises RequestError."""
    if not messages:
        raise RequestError("messages", "expected at least one, found none")
    return [_check_message(f"messages[{index}]", message) for index, message in enumerate(messages)]


def sort_keys(value: Any) -> Any:
    """Object keys in order at every depth, lists as they are: the form in which tools were declared in training."""
    if isinstance(value, dict):
        return {key: sort_keys(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [sort_keys(entry) for entry in value]
    return value


def _check_message(where: str, message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RequestError(where, f"expected an object, found {type(message).__name__}")
    present = {key: value for key, value in message.items() if value is not None}
    role = present.get("role")
    if role not in ROLES:
        raise RequestError(f"{where}.role", f"expected one of {', '.join(ROLES)}; found {role!r}")
    _check_texts(where, present, ("name", "reasoning_content", "tool_call_id"))
    _check_content(f"{where}.content", present.get("content"))
    _check_tool_fields(where, role, present)
    # Templates ask `content is none`; an absent key would be "undefined" instead.
    return {"content": None} | present


def _check_texts(where: str, fields: dict[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if not isinstance(fields.get(name, ""), str):
            raise RequestError(f"{where}.{name}", f"expected text, found {type(fields[name]).__name__}")


def _check_content(where: str, content: Any) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise RequestError(where, f"expected text or a list of parts, found {type(content).__name__}")
    for index, part in enumerate(content):
        _check_part(f"{where}[{index}]", part)


def _check_part(where: str, part: Any) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", *_MEDIA):
        raise RequestError(f"{where}.type", f"expected text, {', '.join(_MEDIA)}; found {kind!r}")
    if kind == "text" and not isinstance(part.get("text"), str):
        raise RequestError(f"{where}.text", f"expected text, found {part.get('text')!r}")


def _check_tool_fields(where: str, role: str, message: dict[str, Any]) -> None:
    if role == "tool" and not message.get("tool_call_id"):
        raise RequestError(f"{where}.tool_call_id", "a tool message must name the call that it answers")
    calls = message.get("tool_calls", [])
    if not isinstance(calls, list):
        raise RequestError(f"{where}.tool_calls", f"expected a list, found {type(calls).__name__}")
    if calls and role != "assistant":
        raise RequestError(f"{where}.tool_calls", f"only an assistant message may have them, not one of role {role!r}")
    for index, call in enumerate(calls):
        _check_call(f"{where}.tool_calls[{index}]", call)


def _check_call(where: str, call: Any) -> None:
    if not isinstance(call, dict):
        raise RequestError(where, f"expected an object, found {type(call).__name__}")
    if not isinstance(call.get("id"), str) or not call["id"]:
        raise RequestError(f"{where}.id", f"expected a text such as functions.NAME:0, found {call.get('id')!r}")
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(arguments, str | dict):
        raise RequestError(f"{where}.function.arguments", f"expected JSON text or an object, found {arguments!r}")
