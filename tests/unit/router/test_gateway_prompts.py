"""A shaped template and the reader of its prompts, end to end: rendered and encoded as a gateway does it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshard.router.gateway.marks import find_marks
from moonshard.router.gateway.prompts import Prompt, PromptReader
from moonshard.router.gateway.shaped_template import shape_template
from moonshard.router.template import ChatTemplate, read_template
from moonshard.tokenizer import Tokenizer, load_tokenizer

Render = Callable[..., Prompt]

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


class Gateway:
    """The checkpoint's own prompts, and those of a gateway that was given the shaped template."""

    def __init__(self, checkpoint: Path) -> None:
        self.tokenizer: Tokenizer = load_tokenizer(checkpoint)
        names = self.tokenizer.special_tokens
        source, _ = read_template(checkpoint)
        marks = find_marks(names)
        assert marks
        self.own = ChatTemplate(source)
        self.shaped = ChatTemplate(shape_template(source, marks, names))
        self.reader = PromptReader(self.tokenizer)

    def read(self, messages: list[dict[str, Any]], asks: bool = False, **values: Any) -> Prompt:
        text = self.shaped.render(messages, **values)
        return self.reader.read(self.tokenizer.encode(text, allow_special=True), asks)

    def reference(self, messages: list[dict[str, Any]], **values: Any) -> list[int]:
        return self.tokenizer.encode(self.own.render(messages, **values), allow_special=True)


@pytest.fixture(scope="module", params=["demo", "published"])
def gateway(request: pytest.FixtureRequest, tiny_checkpoint: Path) -> Gateway:
    if request.param == "demo":
        return Gateway(tiny_checkpoint)
    data: Path = request.getfixturevalue("shared_data")
    return Gateway(data / "kimi-k2.5")


CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Weather in"}, {"type": "text", "text": " Rome?"}]},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "need the tool",
        "tool_calls": [
            {"id": "functions.weather:0", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        ],
    },
    {"role": "tool", "tool_call_id": "functions.weather:0", "content": "Sunny"},
]


@pytest.mark.parametrize("tools", [None, [WEATHER]])
@pytest.mark.parametrize("thinking", [True, False])
def test_harmless_prompts_are_the_reference(gateway: Gateway, thinking: bool, tools: list[Any] | None) -> None:
    found = gateway.read(CONVERSATION, tools=tools, thinking=thinking)
    assert found.token_ids == gateway.reference(CONVERSATION, tools=tools, thinking=thinking)
    assert found.opens_thought is thinking
    assert found.is_instant is not thinking
    assert json.loads(found.tools or "null") == tools


SPELLINGS = ["<|im_end|>", "<|im_system|>", "<think>", "</think>", "[BOS]", "<|", "<|reserved_token_7|>", "|>", "[EOS]"]
texts = st.lists(st.one_of(st.sampled_from(SPELLINGS), st.text(max_size=12))).map("".join)


@settings(max_examples=60, deadline=None)
@given(said=texts, told=texts, name=texts)
def test_nobody_forges_control_tokens(tiny_checkpoint: Path, said: str, told: str, name: str) -> None:
    gateway = _demo(tiny_checkpoint)
    messages = [
        {"role": "user", "content": said, "name": name or "n"},
        {"role": "tool", "content": told, "tool_call_id": said or "n"},
    ]
    ids = list(gateway.read(messages).token_ids)
    special = gateway.tokenizer.special_tokens
    control = [gateway.tokenizer.decode([number]) for number in ids if number in special.values()]
    turns = ["<|im_user|>", "<|im_middle|>", "<|im_end|>", "<|im_system|>", "<|im_middle|>", "<|im_end|>"]
    assert control == [*turns, "<|im_assistant|>", "<|im_middle|>", "<think>"]
    start = ids.index(special["<|im_middle|>"]) + 1
    end = ids.index(special["<|im_end|>"])
    assert ids[start:end] == gateway.tokenizer.encode(said, allow_special=False)


def test_foreign_call_ids_become_the_models_own(gateway: Gateway) -> None:
    foreign = json.loads(json.dumps(CONVERSATION).replace("functions.weather:0", "call_abc"))
    assert gateway.read(foreign).token_ids == gateway.reference(CONVERSATION)


def test_an_api_that_thinks_on_request_only(gateway: Gateway) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    assert gateway.read(messages, asks=True).opens_thought  # render() says thinking=True: asked for by name
    text = gateway.own.render(messages)
    unasked = gateway.reader.read(gateway.tokenizer.encode(text, allow_special=True), thinks_only_if_asked=True)
    assert unasked.is_instant
    assert unasked.token_ids == gateway.reference(messages, thinking=False)


def test_ids_without_notes_pass_as_they_are(gateway: Gateway) -> None:
    assert gateway.reader.read([5, 6, 7], thinks_only_if_asked=False).token_ids == [5, 6, 7]
    assert gateway.reader.read([], thinks_only_if_asked=True).token_ids == []


_made: dict[Path, Gateway] = {}


def _demo(checkpoint: Path) -> Gateway:
    if checkpoint not in _made:
        _made[checkpoint] = Gateway(checkpoint)
    return _made[checkpoint]
