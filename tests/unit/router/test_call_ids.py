"""Ids of tool calls in the history: foreign ones in the model's form, with their results."""

from typing import Any

import pytest

from moonshard.router.chat.call_ids import call_id, name_in, num_calls, with_canonical_ids


def asks(*calls: tuple[str, str]) -> dict[str, Any]:
    made = [{"id": id_, "type": "function", "function": {"name": name, "arguments": "{}"}} for id_, name in calls]
    return {"role": "assistant", "content": None, "tool_calls": made}


def answers(id_: str) -> dict[str, Any]:
    return {"role": "tool", "content": "done", "tool_call_id": id_}


def ids(messages: list[dict[str, Any]]) -> list[str]:
    """Ids of calls and results, in order."""
    found = []
    for message in messages:
        found += [call["id"] for call in message.get("tool_calls", ())]
        found += [message["tool_call_id"]] if "tool_call_id" in message else []
    return found


def test_foreign_ids_and_their_results_are_rewritten() -> None:
    user = {"role": "user", "content": "go"}
    messages = [user, asks(("call_abc", "look"), ("call_d", "my-tool.v2")), answers("call_d"), answers("call_abc")]
    again = [user, asks(("call_abc", "look")), answers("call_abc")]
    assert ids(with_canonical_ids(messages + again)) == [
        "functions.look:0", "functions.my-tool.v2:1", "functions.my-tool.v2:1", "functions.look:0",
        "functions.look:2", "functions.look:2",
    ]  # fmt: skip
    assert ids(messages) == ["call_abc", "call_d", "call_d", "call_abc"], "the caller's messages stay as they are"


def test_canonical_ids_stay() -> None:
    """Whatever their index: the reference prints ids as they are."""
    messages = [asks(("functions.look:0", "look")), answers("functions.look:0"), asks(("functions.look:0", "look"))]
    assert with_canonical_ids(messages) == messages


def test_a_rewritten_id_is_not_taken_twice() -> None:
    messages = [asks(("x", "look"), ("functions.look:0", "look")), answers("x"), answers("functions.look:0")]
    assert ids(with_canonical_ids(messages)) == ["functions.look:1", "functions.look:0"] * 2


def test_ids_without_a_call_or_a_name_stay() -> None:
    unnamed = asks(("call_a", "look"))
    del unnamed["tool_calls"][0]["function"]["name"]
    assert ids(with_canonical_ids([unnamed, answers("call_a"), answers("call_z")])) == ["call_a", "call_a", "call_z"]


def test_the_next_index_counts_every_call() -> None:
    assert num_calls([asks(("a", "f"), ("b", "g")), answers("a"), {"role": "assistant", "content": "x"}]) == 2
    assert call_id("f", 2) == "functions.f:2"


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("functions.get_weather:0", "get_weather"),
        (" functions.get-weather.v2:12\n", "get-weather.v2"),
        ("get_weather:3", "get_weather"),
        ("get_weather", "get_weather"),
        ("functions.get_weather", "get_weather"),
        ("functions.a:b:0", "a:b"),
        ("functions.functions.f:0", "functions.f"),
        ("0", ""),
        ("functions.:0", ""),
        ("functions.7:0", ""),
        ("", ""),
    ],
)
def test_the_name_in_a_header(header: str, name: str) -> None:
    assert name_in(header) == name
