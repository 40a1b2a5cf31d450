"""Conversations to prompts: golden ids, and control tokens that callers' text cannot forge."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshard.errors import RequestError
from moonshard.router.chat.control_text import ControlText
from moonshard.router.chat.prompt import Conversation, Prompt, PromptWriter
from moonshard.router.chat.tools import Tool
from moonshard.router.template import ChatTemplate
from moonshard.tokenizer import Tokenizer, load_tokenizer

HELLO = [{"role": "user", "content": "Hello"}]
KIMI_SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."
CALL = {
    "id": "functions.get_weather:0",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Beijing"}'},
}
WEATHER_TURN = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "reasoning_content": "need tool", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": CALL["id"], "content": "Sunny"},
]
WEATHER_IDS = (
    "163587 2482 163601 65512 30 163586 163588 69702 163601 163606 23995 4453 163607 163595 163597 41937 1150 21055 "
    "2800 25 15 163598 8264 37666 1289 414 4396 39556 16934 163599 163596 163586 163594 20960 163601 798 6014 318 "
    "8271 1150 21055 2800 25 15 198 50 38975 163586 163588 69702 163601 163606"
)
WEATHER = Tool(
    "get_weather",
    "Weather of a city",
    {
        "type": "object",
        "properties": {
            "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
            "city": {"type": "string", "description": "City name"},
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
        },
        "required": ["city"],
    },
)


class Bench:
    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.writer = PromptWriter(tokenizer, template)
        self.trusting = PromptWriter(tokenizer, template, trust_callers=True)
        self.controls = set(tokenizer.special_ids)

    def skeleton(self, prompt: Prompt) -> list[int]:
        """The control tokens, in order."""
        return [token for token in prompt.token_ids if token in self.controls]


@pytest.fixture(scope="module")
def published(shared_data: Path) -> Bench:
    folder = shared_data / "kimi-k2.5"
    return Bench(load_tokenizer(folder), ChatTemplate.load(folder))


@pytest.fixture(scope="module")
def demo(tiny_checkpoint: Path) -> Bench:
    return Bench(load_tokenizer(tiny_checkpoint), ChatTemplate.load(tiny_checkpoint))


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
        (WEATHER_TURN, True, WEATHER_IDS),
    ],
)
def test_golden_ids(published: Bench, messages: list[dict[str, Any]], thinking: bool, ids: str) -> None:
    expected = [int(number) for number in ids.split()]
    for writer in (published.writer, published.trusting):
        prompt = writer.write(Conversation(messages, thinking=thinking))
        assert prompt.token_ids == expected
        assert prompt.text == published.tokenizer.decode(expected)
        assert prompt.opens_thought == thinking


def test_foreign_ids_give_the_golden_ids_too(published: Bench) -> None:
    _, asking, answer = WEATHER_TURN
    foreign = [HELLO[0] | {"content": "Weather?"}, asking | {"tool_calls": [CALL | {"id": "call_abc"}]}]
    prompt = published.writer.write(Conversation([*foreign, answer | {"tool_call_id": "call_abc"}]))
    assert prompt.token_ids == [int(number) for number in WEATHER_IDS.split()]
    assert prompt.num_calls == 1


def test_tools_are_declared_as_typescript(published: Bench) -> None:
    prompt = published.writer.write(Conversation(HELLO, [WEATHER]))
    assert prompt.text.startswith(
        "<|im_system|>tool_declare<|im_middle|># Tools\n\n## functions\nnamespace functions {\n// Weather of a city\n"
        "type get_weather = (_: {\n  // City name\n  city: string,\n  // maximum: 7, minimum: 1\n  days?: number,\n"
        '  // Default: "c"\n  unit?: "c" | "f"\n}) => any;\n}\n<|im_end|><|im_user|>user'
    )
    assert prompt.token_ids == published.tokenizer.encode(prompt.text, allow_special=True)


def test_an_unknown_schema_declares_all_tools_as_sorted_json(published: Bench) -> None:
    odd = Tool("odd", "größer", {"type": "object", "properties": {"b": {"oneOf": [{}]}, "a": {"const": 1}}})
    prompt = published.writer.write(Conversation(HELLO, [odd]))
    declared = prompt.text.removeprefix("<|im_system|>tool_declare<|im_middle|>").partition("<|im_end|>")[0]
    assert declared == (
        '[{"function":{"description":"größer","name":"odd","parameters":{"properties":{"a":{"const":1},'
        '"b":{"oneOf":[{}]}},"type":"object"}},"type":"function"}]'
    )


# Texts in which spellings of control tokens are likely, whole, in parts, and with stand-ins of our own.
SPELLINGS = ("<|im_end|>", "<|im_user|>", "<think>", "</think>", "[EOS]", "<|tool_call_begin|>", "<|media_pad|>")
PARTS = (*SPELLINGS, "<|im_", "end|>", "<", "|", "[", "]", "<thi", "nk>", "\ue000", "\ue001", " ", "\n", "a", "é")
texts = st.one_of(st.lists(st.sampled_from(PARTS), max_size=6).map("".join), st.text(max_size=20))
tool_names = st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True)


def conversations(text: st.SearchStrategy[str], tools: st.SearchStrategy[Any]) -> st.SearchStrategy[Conversation]:
    """With every place that a caller fills."""
    arguments = st.one_of(text, st.dictionaries(text, text, max_size=2))
    function = st.fixed_dictionaries({"name": tool_names, "arguments": arguments})
    call = st.fixed_dictionaries({"id": text.filter(bool), "function": function})
    part = st.fixed_dictionaries({"type": st.just("text"), "text": text})
    content = st.one_of(text, st.lists(part, max_size=3))
    turn = st.one_of(
        st.fixed_dictionaries({"role": st.just("user"), "content": content, "name": text}),
        st.fixed_dictionaries({"role": st.just("system"), "content": text}),
        st.fixed_dictionaries(
            {"role": st.just("assistant"), "content": text, "reasoning_content": text},
            optional={"tool_calls": st.lists(call, max_size=2)},
        ),
        st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": text.filter(bool), "content": text}),
    )
    return st.builds(Conversation, st.lists(turn, min_size=1, max_size=4), tools, st.booleans())


schemas = st.one_of(
    st.builds(lambda text: {"type": "object", "properties": {"x": {"type": "string", "description": text}}}, texts),
    st.builds(lambda key, text: {"properties": {key: {"enum": [text]}}}, texts, texts),
    st.builds(lambda text: {"properties": {"x": {"const": text}}}, texts),
)
tools_of_callers = st.lists(
    st.builds(Tool, tool_names, texts, schemas), max_size=2, unique_by=lambda tool: str(tool.name)
)


def harmless(value: Any) -> Any:
    """The same shape with texts that spell nothing. Empty ones stay, for templates ask."""
    if isinstance(value, str):
        return "x" * len(value)
    if isinstance(value, dict):
        kept = ("role", "type")
        return {key: entry if key in kept else harmless(entry) for key, entry in value.items()}
    return [harmless(entry) for entry in value] if isinstance(value, list) else value


def check_that_nothing_is_forged(bench: Bench, said: Conversation) -> None:
    prompt = bench.writer.write(said)
    tools = [Tool(tool.name, harmless(tool.description), {"type": "object"}) for tool in said.tools]
    twin = bench.writer.write(Conversation(harmless(said.messages), tools, said.thinking))
    assert bench.skeleton(prompt) == bench.skeleton(twin)
    assert bench.tokenizer.decode(prompt.token_ids) == prompt.text
    assert prompt.text == bench.trusting.write(said).text, "the text itself is the reference's"


@settings(deadline=None, max_examples=200)
@given(said=conversations(texts, tools_of_callers))
def test_callers_cannot_forge_control_tokens(demo: Bench, said: Conversation) -> None:
    check_that_nothing_is_forged(demo, said)


@settings(deadline=None, max_examples=50)
@given(said=conversations(texts, tools_of_callers))
def test_callers_cannot_forge_published_control_tokens(published: Bench, said: Conversation) -> None:
    check_that_nothing_is_forged(published, said)


@settings(deadline=None, max_examples=50)
@given(said=conversations(st.text("abc <[|\ue000é\n", max_size=20), st.just(())))
def test_texts_that_spell_nothing_are_encoded_as_the_reference_does(demo: Bench, said: Conversation) -> None:
    assert demo.writer.write(said) == demo.trusting.write(said)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_operator_can_trust_callers(demo: Bench, spelling: str) -> None:
    said = Conversation([{"role": "user", "content": f"a{spelling}b"}])
    forged = demo.tokenizer.special_tokens[spelling]
    plain = Conversation([{"role": "user", "content": "ab"}])
    count = demo.writer.write(plain).token_ids.count(forged)
    assert demo.trusting.write(said).token_ids.count(forged) == count + 1
    assert demo.writer.write(said).token_ids.count(forged) == count


def test_two_parts_do_not_join_to_a_control_token(demo: Bench) -> None:
    parts = [{"type": "text", "text": "<|im_"}, {"type": "text", "text": "end|>"}]
    prompt = demo.writer.write(Conversation([{"role": "user", "content": parts}]))
    end = demo.tokenizer.special_tokens["<|im_end|>"]
    assert prompt.token_ids.count(end) == 1
    assert "<|im_end|><|im_end|>" in prompt.text


def test_long_texts_are_cut_as_the_reference_cuts_them(demo: Bench) -> None:
    said = Conversation([{"role": "user", "content": "x" * 60_000}])
    assert demo.writer.write(said) == demo.trusting.write(said)


def test_a_text_of_every_private_character_is_refused() -> None:
    everything = "".join(map(chr, [*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE)]))
    names = ControlText({"<a>": 1, "[b]": 2, "word": 3})
    with pytest.raises(RequestError, match="every private-use character"):
        names.shield([everything[1:]])
    shield = names.shield([everything[2:]])
    assert shield.show(shield.hide("<a> [b] word")) == "<a> [b] word"


def test_objects_nested_too_deep_are_refused(demo: Bench) -> None:
    arguments: Any = {}
    for _ in range(900):
        arguments = {"a": arguments}
    call = {"id": "x", "function": {"name": "f", "arguments": arguments}}
    with pytest.raises(RequestError, match="nested too deep"):
        demo.writer.write(Conversation([{"role": "assistant", "tool_calls": [call]}]))


@pytest.mark.parametrize(
    ("tools", "complaint"),
    [
        ([Tool("")], r"tools\[0\].name: expected 1 to 64 of"),
        ([Tool("a"), Tool("b c")], r"tools\[1\].name: .*got 'b c'"),
        ([Tool("<think>")], r"tools\[0\].name"),
        ([Tool("a"), Tool("a")], r"tools\[1\].name: 'a' is declared twice"),
        ([Tool(f"t{number}") for number in range(129)], "tools: must be at most 128, got 129"),
    ],
)
def test_tools_are_checked(demo: Bench, tools: list[Tool], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        demo.writer.write(Conversation(HELLO, tools))


def test_object_arguments_are_written_as_json(demo: Bench) -> None:
    call = {"id": "functions.f:0", "function": {"name": "f", "arguments": {"ö<think>": [1, None]}}}
    prompt = demo.writer.write(Conversation([{"role": "assistant", "tool_calls": [call]}]))
    assert json.dumps({"ö<think>": [1, None]}, ensure_ascii=False) in prompt.text
    assert demo.skeleton(prompt).count(demo.tokenizer.special_tokens["<think>"]) == 2
