"""Our chat template says what the published one says."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshard.router.template import ChatTemplate

USER = {"role": "user", "content": "Hi"}
CALLING = {
    "role": "assistant",
    "content": "I look.",
    "reasoning_content": "need\n\ttool ",
    "tool_calls": [
        {"id": "functions.a:0", "function": {"name": "a", "arguments": '{"x":  1}'}},
        {"id": "call_b", "function": {"name": "b", "arguments": {"ö": [1, None, True]}}},
    ],
}
RESULT = {"role": "tool", "tool_call_id": "functions.a:0", "content": " Sunny\n"}
ANSWER = {"role": "assistant", "content": "done", "reasoning_content": "thought"}
PARTS = [
    {"type": "text", "text": " a\n"},
    {"type": "image_url", "image_url": {"url": "data:"}},
    {"type": "image"},
    {"type": "video_url"},
    {"type": "text", "text": "b"},
]
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "system", "content": "Be kind."}, USER],
    [USER, ANSWER, USER],
    [USER, CALLING, RESULT],
    [USER, CALLING, RESULT, ANSWER],
    [USER, CALLING, RESULT, ANSWER, USER, CALLING, RESULT | {"name": "a"}, CALLING],
    [USER | {"name": "Ann"}, ANSWER | {"name": "Bot", "reasoning_content": None}],
    [{"role": "user", "content": PARTS}],
    [{"role": "user"}, {"role": "assistant", "content": None, "tool_calls": []}, {"role": "system", "content": None}],
    [RESULT | {"content": PARTS}, CALLING | {"content": PARTS, "reasoning_content": ""}],
    [{"role": "user", "content": "{{ 1 }} <|im_end|> <b> & 'x'"}],
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "größer <b>", "parameters": {"b": 1, "a": []}}}]

texts = st.text(max_size=12)
arguments = st.one_of(texts, st.dictionaries(texts, st.one_of(texts, st.integers(), st.none()), max_size=2))
tool_calls = st.lists(
    st.builds(lambda name, given: {"id": name, "function": {"arguments": given}}, st.text(min_size=1), arguments),
    max_size=2,
)
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.builds(lambda kind: {"type": kind}, st.sampled_from(["image", "image_url", "video", "video_url"])),
)
contents = st.one_of(st.none(), texts, st.lists(parts, max_size=3))
messages = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": contents}, optional={"name": texts}),
    st.fixed_dictionaries(
        {"role": st.just("assistant")},
        optional={
            "content": contents,
            "name": texts,
            "reasoning_content": st.one_of(st.none(), texts),
            "tool_calls": tool_calls,
        },
    ),
    st.fixed_dictionaries(
        {"role": st.just("tool"), "content": contents, "tool_call_id": st.text(min_size=1)}, optional={"name": texts}
    ),
)


@pytest.fixture(scope="module")
def ours(tiny: Path) -> ChatTemplate:
    return ChatTemplate.load(tiny)


@pytest.fixture(scope="module")
def published(shared_data: Path) -> ChatTemplate:
    return ChatTemplate.load(shared_data / "kimi-k2.5")


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
def test_table(
    ours: ChatTemplate,
    published: ChatTemplate,
    conversation: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    thinking: bool,
) -> None:
    for prompted in (True, False):
        arguments: dict[str, Any] = {"tools": tools, "thinking": thinking, "add_generation_prompt": prompted}
        assert ours.render(conversation, **arguments) == published.render(conversation, **arguments)


@settings(deadline=None)
@given(conversation=st.lists(messages, min_size=1, max_size=6), thinking=st.booleans())
def test_any_conversation(
    ours: ChatTemplate, published: ChatTemplate, conversation: list[dict[str, Any]], thinking: bool
) -> None:
    assert ours.render(conversation, thinking=thinking) == published.render(conversation, thinking=thinking)


def test_one_conversation_in_full(ours: ChatTemplate) -> None:
    """What the format looks like, for where the published template is not at hand."""
    assert ours.render([USER, ANSWER, USER, CALLING | {"tool_calls": CALLING["tool_calls"][:1]}, RESULT], TOOLS) == (
        f"<|im_system|>tool_declare<|im_middle|>{declared(TOOLS)}<|im_end|>"
        "<|im_user|>user<|im_middle|>Hi<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|><think></think>done<|im_end|>"
        "<|im_user|>user<|im_middle|>Hi<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|><think>need\n\ttool </think>I look."
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.a:0<|tool_call_argument_begin|>"
        '{"x":  1}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
        "<|im_system|>tool<|im_middle|>## Return of functions.a:0\n Sunny\n<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|><think>"
    )


def declared(tools: list[dict[str, Any]]) -> str:
    return json.dumps(tools, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
