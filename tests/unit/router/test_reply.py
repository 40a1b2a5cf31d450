"""Replies by token ids to reasoning, content and tool calls, whole and in any pieces."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshard.router.chat.call_reader import CallReader, tool_meant
from moonshard.router.chat.markers import Markers
from moonshard.router.chat.reply import ReplyParser
from moonshard.router.chat.tools import Tool
from moonshard.router.detokenizer import Detokenizer
from moonshard.router.output import ChoiceDelta, ChoiceOutput
from moonshard.router.requests import Finish, Timings
from moonshard.router.stop_texts import StopTexts
from moonshard.sampling import FinishReason
from tests.unit.router.router_peers import END_OF_TEXT, END_OF_TURN, SPECIALS, byte_tokenizer

TOKENIZER = byte_tokenizer()
MARKERS = Markers.of(TOKENIZER)
ENDS = (END_OF_TURN, END_OF_TEXT)
SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
MISSPELLED = "<|tool_call_section_begin|>"

WEATHER = Tool("get_weather", "", {"properties": {"city": {}, "days": {}}, "required": ["city"]})
TIME = Tool("get-time.v2", "", {"properties": {"zone": {}}, "required": ["zone"]})
CITY_TIME = Tool("city_time", "", {"properties": {"city": {}, "zone": {}, "days": {}}, "required": ["zone"]})
TOOLS = (WEATHER, TIME)


@dataclass
class Reply:
    """All deltas together. calls: (id, name, arguments)."""

    reasoning: str = ""
    content: str = ""
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    num_reasoning_tokens: int = 0


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, allow_special=True)


def parse(
    ids: Sequence[int],
    sizes: Sequence[int] = (),
    in_thought: bool = True,
    thinking: bool = True,
    tools: Sequence[Tool] = TOOLS,
    first_index: int = 0,
    stops: Sequence[str] = (),
    stop_token_id: int | None = None,
) -> Reply:
    """The reply, its tokens cut into deltas of these sizes and the rest in one."""
    text = Detokenizer(TOKENIZER.stream(), ENDS)
    calls = CallReader(tools, first_index) if tools else None
    parser = ReplyParser(MARKERS, text, in_thought, thinking, calls)
    reply = Reply()
    for delta in deltas(ids, sizes, stops, stop_token_id):
        new = parser.push(delta)
        reply.reasoning += new.reasoning
        reply.content += new.content
        for call in new.calls:
            if call.index == len(reply.calls):
                reply.calls.append((call.id, call.name, call.arguments))
            else:
                id_, name, arguments = reply.calls[call.index]
                assert (call.id, call.name) == ("", ""), "told once"
                reply.calls[call.index] = (id_, name, arguments + call.arguments)
    assert parser.has_calls == bool(reply.calls)
    reply.num_reasoning_tokens = parser.num_reasoning_tokens
    return reply


def deltas(
    ids: Sequence[int], sizes: Sequence[int], stops: Sequence[str], stop_token_id: int | None
) -> list[ChoiceDelta]:
    """As the front door gives them out: stop texts cut, the rest dropped."""
    output = ChoiceOutput(0, Detokenizer(TOKENIZER.stream(), ENDS), StopTexts(stops, False))
    found = []
    rest = list(ids)
    for size in (*sizes, len(rest)):
        part, rest = rest[:size], rest[size:]
        output.push(part, stop_token_id=None if rest else stop_token_id)
        if output.stop_text is not None or not rest:
            break
        found.append(output.take())
    finish = Finish(FinishReason.STOP, stop_token_id, 1, len(ids), Timings(0, 0, 0), stop_text=output.stop_text)
    output.finish(finish)
    return [delta for delta in (*found, output.take()) if delta]


def call(header: str = "functions.get_weather:0", arguments: str = '{"city": "Ur"}') -> str:
    return f"{CALL}{header}{ARGUMENTS}{arguments}{CALL_END}"


UR = '{"city": "Ur"}'
QUOTING = '{"city": "</think><think>"}'


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("hm</think>hello", "hm", "hello"),
        ("hm \n\n</think>\n\nhello", "hm", "\n\nhello"),
        ("two  words \t</think>", "two  words", ""),
        ("never closed ", "never closed", ""),
        ("</think>hello", "", "hello"),
        ("", "", ""),
        ("a<think>b</think>c", "ab", "c"),
        ("a</think>b</think>c<think>d", "a", "bcd"),
        ("a</think>< think> and <|tool_call_", "a", "< think> and <|tool_call_"),
        (f"a</think>{MISSPELLED} is how it is spelt", "a", f"{MISSPELLED} is how it is spelt"),
        (f"say {MISSPELLED}", f"say {MISSPELLED}", ""),
        ("a</think>b<eot>c", "a", "bc"),
        ("größe🚀</think>é", "größe🚀", "é"),
    ],
)
def test_reasoning_and_content(text: str, reasoning: str, content: str) -> None:
    reply = parse(ids_of(text))
    assert (reply.reasoning, reply.content, reply.calls) == (reasoning, content, [])


def test_tokens_of_the_thought_are_counted() -> None:
    assert parse(ids_of("four</think>and more")).num_reasoning_tokens == 4
    assert parse(ids_of(f"two{SECTION}{call()}")).num_reasoning_tokens == 3
    assert parse(ids_of("none"), in_thought=False, thinking=False).num_reasoning_tokens == 0


@pytest.mark.parametrize("text", ["a<think>b</think>c", "abc", "<think>a</think>bc"])
def test_instant_mode_has_no_reasoning(text: str) -> None:
    reply = parse(ids_of(text), in_thought=False, thinking=False)
    assert (reply.reasoning, reply.content) == ("", "abc")


def test_a_reply_may_open_its_own_thought_at_its_beginning() -> None:
    """Where the template leaves that to the model."""
    reply = parse(ids_of(" <think>hm</think>a<think>b"), in_thought=False)
    assert (reply.reasoning, reply.content) == ("hm", " ab")


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"</think>so{SECTION}{call()}{SECTION_END}", "so", [("get_weather", UR)]),
        (
            f"</think>{SECTION}{call()}{call('functions.get-time.v2:1', '{}')}{SECTION_END}",
            "",
            [("get_weather", UR), ("get-time.v2", "{}")],
        ),
        (f"</think>{SECTION}{call()}{SECTION_END} dropped", "", [("get_weather", UR)]),
        (f"</think>{SECTION} x {call()} y {call()} z {SECTION_END}", "", [("get_weather", UR)] * 2),
        (f"</think>a{call()}", "a", [("get_weather", UR)]),
        (f"</think>{SECTION}{CALL}functions.get_weather:0{ARGUMENTS}{UR}{SECTION_END}", "", [("get_weather", UR)]),
        (f"</think>{SECTION}{CALL}functions.get_weather:0{ARGUMENTS}{UR}", "", [("get_weather", UR)]),
        (f"</think>{SECTION}{CALL}functions.get_weather:0{ARGUMENTS}{UR}{call()}", "", [("get_weather", UR)] * 2),
        (f"</think>{SECTION}{call()}{SECTION_END}{SECTION}{call()}{SECTION_END}", "", [("get_weather", UR)] * 2),
        (f"</think>{MISSPELLED}{call()}<|tool_call_section_end|>", "", [("get_weather", UR)]),
        (f"</think>so {MISSPELLED}\n{call()}", "so ", [("get_weather", UR)]),
        (f"</think>{call(arguments='')}", "", [("get_weather", "{}")]),
        (f"</think>{call(arguments='  ')}", "", [("get_weather", "{}")]),
        (f"</think>{call(arguments=' {} ')}", "", [("get_weather", "{} ")]),
        (f"</think>{CALL}functions.get_weather:0{CALL_END}", "", [("get_weather", "{}")]),
        (f"</think>{CALL}functions.get_weather:0", "", []),
        (f"</think>{CALL}functions.get_weather:0{ARGUMENTS}", "", [("get_weather", "")]),
        (f"</think>{call(arguments='{c')}", "", [("get_weather", "{c")]),
        (f"</think>{call('get_weather:7')}", "", [("get_weather", UR)]),
        (f"</think>{call(' functions.get_weather:0 ')}", "", [("get_weather", UR)]),
        (f"</think>{call('functions.unheard_of:0')}", "", [("unheard_of", UR)]),
        (f"</think>{call('0')}", "", [("get_weather", UR)]),
        (f"</think>{call('0', ' ' + UR)}", "", [("get_weather", UR)]),
        ("</think>" + call("", '{"zone": 1}'), "", [("get-time.v2", '{"zone": 1}')]),
        ("</think>" + call("3", '{"x": 1}'), "", [("3", '{"x": 1}')]),
        (f"</think>{call('3', '{')}", "", [("3", "{")]),
        (f"</think>{call('3', '')}", "", []),
        (f"</think>{CALL}{CALL_END}b", "", []),
        ("</think>" + call(arguments=QUOTING), "", [("get_weather", QUOTING)]),
        (f"</think>a{ARGUMENTS}b{CALL_END}c{SECTION_END}d", "abcd", []),
        (f"</think>{SECTION}{SECTION_END}dropped", "", []),
    ],
)
def test_tool_calls(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    reply = parse(ids_of(text))
    assert (reply.reasoning, reply.content) == ("", content)
    assert [(name, arguments) for _, name, arguments in reply.calls] == calls
    assert [id_ for id_, _, _ in reply.calls] == [f"functions.{name}:{n}" for n, (name, _) in enumerate(calls)]


@pytest.mark.parametrize("opener", [SECTION, CALL + "functions.get_weather:0" + ARGUMENTS, f"{MISSPELLED} {CALL}"])
def test_calls_end_an_open_thought(opener: str) -> None:
    reply = parse(ids_of(f"I need it. \n{opener}"))
    assert (reply.reasoning, reply.content) == ("I need it.", "")


def test_ids_count_through_the_conversation() -> None:
    reply = parse(ids_of(f"</think>{SECTION}{call()}{call('functions.get_weather:9')}"), first_index=3)
    assert [id_ for id_, _, _ in reply.calls] == ["functions.get_weather:3", "functions.get_weather:4"]


def test_without_tools_their_markers_are_dropped() -> None:
    reply = parse(ids_of(f"hm {SECTION}{call()}{SECTION_END} more"), tools=())
    assert (reply.reasoning, reply.calls) == ("hm", [])
    assert reply.content == f"functions.get_weather:0{UR} more"


@pytest.mark.parametrize(
    ("arguments", "tools", "name"),
    [
        ('{"city": 1}', (WEATHER, CITY_TIME), "get_weather"),
        ('{"zone": 1}', (WEATHER, CITY_TIME, TIME), "get-time.v2"),
        ('{"zone": 1, "city": 2}', (WEATHER, CITY_TIME, TIME), "city_time"),
        ('{"days": 1}', (WEATHER, CITY_TIME), "get_weather"),
        ('{"other": 1}', (WEATHER, TIME), ""),
        ("{}", (WEATHER, TIME), ""),
        ("[]", (WEATHER, TIME), ""),
        ("[" * 100_000, (WEATHER, TIME), ""),
        ("{", (WEATHER,), "get_weather"),
        ('{"a": 1}', (Tool("none"), Tool("odd", "", {"properties": 1, "required": 2})), ""),
    ],
)
def test_arguments_tell_the_tool(arguments: str, tools: tuple[Tool, ...], name: str) -> None:
    assert tool_meant(arguments, tools) == name


def test_the_stopping_token_is_not_part_of_the_reply() -> None:
    assert parse([*ids_of("hm</think>hi"), END_OF_TURN], stop_token_id=END_OF_TURN).content == "hi"
    assert parse([*ids_of("hm</think>hi"), ord("!")], stop_token_id=ord("!")).content == "hi"
    cut = parse(ids_of(f"</think>{CALL}f:0{ARGUMENTS}{{}}{CALL_END}"), stop_token_id=SPECIALS[CALL_END])
    assert [arguments for _, _, arguments in cut.calls] == ["{}"]


@pytest.mark.parametrize(
    ("text", "stop", "reasoning", "content"),
    [
        ("hm</think>hello END more", "END", "hm", "hello "),
        ("think END more</think>hello", "END", "think", ""),
        ("hm</think>hi", "m</think>h", "h", ""),
        ("hm</think>EN", "END", "hm", "EN"),
        ("hm</think>größe", "öß", "hm", "gr"),
    ],
)
def test_stop_texts_cut_the_parts(text: str, stop: str, reasoning: str, content: str) -> None:
    for sizes in ((), (1,) * 40, (3,) * 12):
        reply = parse(ids_of(text), sizes, stops=[stop])
        assert (reply.reasoning, reply.content) == (reasoning, content)


def test_a_stop_text_within_arguments_cuts_them() -> None:
    reply = parse(ids_of("</think>" + call(arguments='{"city": "Ur", "days": 3}')), stops=[', "days'])
    assert reply.calls == [("functions.get_weather:0", "get_weather", '{"city": "Ur"')]


def test_arguments_stream_as_they_come() -> None:
    parser = ReplyParser(MARKERS, Detokenizer(TOKENIZER.stream(), ENDS), False, False, CallReader(TOOLS, 0))
    pieces = []
    for token in ids_of(f"{SECTION}{CALL}functions.f:0{ARGUMENTS}{{ab}}"):
        new = parser.push(ChoiceDelta(0, (token,), TOKENIZER.decode([token])))
        pieces += [(call.id, call.arguments) for call in new.calls]
    assert pieces == [("functions.f:0", ""), ("", "{"), ("", "a"), ("", "b"), ("", "}")]


PIECES = (*SPECIALS, MISSPELLED, MISSPELLED[:9], "functions.get_weather:0", UR, "0", " ", "\n", "<", "hi", "é", "🚀")
replies = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=12).map(lambda pieces: ids_of("".join(pieces))),
    st.lists(st.integers(0, 255) | st.sampled_from(list(SPECIALS.values())), max_size=30),
)


@settings(deadline=None, max_examples=300)
@given(
    ids=replies,
    sizes=st.lists(st.integers(1, 5), max_size=40),
    in_thought=st.booleans(),
    tools=st.sampled_from([(), TOOLS]),
    stops=st.lists(st.sampled_from(["hi", "<", "é", "}", "\n "]), max_size=2),
)
def test_the_cut_into_deltas_changes_nothing(
    ids: list[int], sizes: list[int], in_thought: bool, tools: tuple[Tool, ...], stops: list[str]
) -> None:
    whole = parse(ids, in_thought=in_thought, tools=tools, stops=stops)
    assert parse(ids, sizes, in_thought=in_thought, tools=tools, stops=stops) == whole
    assert parse(ids, (1,) * len(ids), in_thought=in_thought, tools=tools, stops=stops) == whole


@settings(deadline=None)
@given(
    text=st.text().filter(lambda text: MISSPELLED not in text and not re.search("<end>|<eot>|think>|tool_call", text))
)
def test_ordinary_text_comes_back_as_it_is(text: str) -> None:
    assert parse(ids_of(text), in_thought=False, thinking=False).content == text
    assert parse(ids_of(text)).reasoning == text.rstrip()
