"""Chat messages to prompts: the published golden ids, refusals, and templates that fail."""

import json
from pathlib import Path
from typing import Any

import pytest

from moonshard.errors import CheckpointError, RequestError
from moonshard.router.template import ChatTemplate
from moonshard.tokenizer import Tokenizer, load_tokenizer

HELLO = [{"role": "user", "content": "Hello"}]
KIMI_SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."
CALL = {
    "id": "functions.get_weather:0",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Beijing"}'},
}
MEDIA = "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>\n"


@pytest.fixture(scope="module")
def published(shared_data: Path) -> ChatTemplate:
    return ChatTemplate.load(shared_data / "kimi-k2.5")


@pytest.fixture(scope="module")
def tokenizer(shared_data: Path) -> Tokenizer:
    return load_tokenizer(shared_data / "kimi-k2.5")


@pytest.mark.parametrize(
    ("messages", "thinking", "ids"),
    [
        (HELLO, True, "163587 2482 163601 19180 163586 163588 69702 163601 163606"),
        (HELLO, False, "163587 2482 163601 19180 163586 163588 69702 163601 163606 163607"),
        (
            [{"role": "system", "content": KIMI_SYSTEM}, {"role": "user", "content": "hi, who are you?"}],
            True,
            "163594 14062 163601 3900 554 24980 72 11 519 22572 26626 5232 673 30218 10065 22572 13 163586 163587 "
            "2482 163601 9663 11 1364 554 398 30 163586 163588 69702 163601 163606",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "Describe"}]}],
            True,
            "163587 2482 163601 163602 4017 163603 163605 163604 198 48848 163586 163588 69702 163601 163606",
        ),
        (
            [
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "reasoning_content": "need tool", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": CALL["id"], "content": "Sunny"},
            ],
            True,
            "163587 2482 163601 65512 30 163586 163588 69702 163601 163606 23995 4453 163607 163595 163597 41937 1150 "
            "21055 2800 25 15 163598 8264 37666 1289 414 4396 39556 16934 163599 163596 163586 163594 20960 163601 "
            "798 6014 318 8271 1150 21055 2800 25 15 198 50 38975 163586 163588 69702 163601 163606",
        ),
    ],
)
def test_golden_ids(
    published: ChatTemplate, tokenizer: Tokenizer, messages: list[dict[str, Any]], thinking: bool, ids: str
) -> None:
    prompt = published.render(messages, thinking=thinking)
    assert tokenizer.encode(prompt, allow_special=True) == [int(number) for number in ids.split()]


def test_null_reasoning_is_missing_reasoning(published: ChatTemplate) -> None:
    answer = {"role": "assistant", "content": "a", "tool_calls": [CALL]}
    with_null = published.render([*HELLO, answer | {"reasoning_content": None}])
    assert with_null == published.render([*HELLO, answer])
    assert "<think></think>a" in with_null


def test_tools_are_sorted_and_compact(published: ChatTemplate) -> None:
    tools = [{"type": "function", "function": {"name": "größe", "description": "b"}}]
    declared = '[{"function":{"description":"b","name":"größe"},"type":"function"}]'
    assert f"<|im_system|>tool_declare<|im_middle|>{declared}<|im_end|>" in published.render(HELLO, tools=tools)


def test_no_generation_prompt(published: ChatTemplate) -> None:
    assert published.render(HELLO, add_generation_prompt=False) == "<|im_user|>user<|im_middle|>Hello<|im_end|>"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("hello", ""),
        ({"content": "a"}, ".role"),
        ({"role": "robot", "content": "a"}, ".role"),
        ({"role": "user", "content": 3}, ".content"),
        ({"role": "user", "content": ["a"]}, ".content[0].type"),
        ({"role": "user", "content": [{"type": "audio"}]}, ".content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, ".content[0].text"),
        ({"role": "user", "content": "a", "name": 1}, ".name"),
        ({"role": "assistant", "content": "a", "reasoning_content": ["b"]}, ".reasoning_content"),
        ({"role": "tool", "content": "a"}, ".tool_call_id"),
        ({"role": "tool", "content": "a", "tool_call_id": ""}, ".tool_call_id"),
        ({"role": "tool", "content": "a", "tool_call_id": 7}, ".tool_call_id"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, ".tool_calls"),
        ({"role": "assistant", "tool_calls": {"id": "a"}}, ".tool_calls"),
        ({"role": "assistant", "tool_calls": ["a"]}, ".tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [CALL, {"function": {}}]}, ".tool_calls[1].id"),
        ({"role": "assistant", "tool_calls": [CALL | {"function": {}}]}, ".tool_calls[0].function.arguments"),
    ],
)
def test_refusals_name_the_field(message: Any, field: str) -> None:
    with pytest.raises(RequestError) as refusal:
        ChatTemplate("{{ messages }}").render([*HELLO, message])
    assert refusal.value.field == f"messages[1]{field}"


def test_no_messages_are_refused() -> None:
    with pytest.raises(RequestError, match="messages: expected at least one"):
        ChatTemplate("").render([])


def test_template_in_tokenizer_config(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one {{ messages[0].content }}"}))
    assert ChatTemplate.load(tmp_path).render(HELLO) == "one Hello"
    named = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate.load(tmp_path).render(HELLO) == "three"
    (tmp_path / "chat_template.jinja").write_text("four")
    assert ChatTemplate.load(tmp_path).render(HELLO) == "four"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "tokenizer_config.json: cannot be read"),
        ({"tokenizer_config.json": b"{}"}, "expected chat_template, here or as chat_template.jinja"),
        ({"tokenizer_config.json": b'{"chat_template": [1]}'}, "expected chat_template, here or"),
        ({"chat_template.jinja": b"a\n{% if %}"}, "chat_template.jinja: line 2: "),
        ({"chat_template.jinja": b"\xff"}, "chat_template.jinja: not UTF-8"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        ChatTemplate.load(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no system messages') }}",
        "{{ nothing.at.all }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_a_failing_template_refuses_the_request(source: str) -> None:
    with pytest.raises(RequestError, match="messages: the chat template refuses them: "):
        ChatTemplate(source).render(HELLO)


def test_the_environment_is_what_templates_expect() -> None:
    source = """
{% for message in messages %}
    {% if loop.index == 2 %}
        {% break %}
    {% endif %}
{{ {'b': 'é<', 'a': 1} | tojson(separators=(',', ':')) }}
{% endfor %}
"""
    assert ChatTemplate(source).render(HELLO * 3) == '\n{"b":"é<","a":1}\n'
