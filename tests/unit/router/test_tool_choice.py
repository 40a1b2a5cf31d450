"""Tool choice as a grammar: which replies it lets through, and what is refused."""

import json
import random
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from moonshard.errors import RequestError
from moonshard.grammar import GrammarEngine
from moonshard.router.chat.call_reader import CallReader
from moonshard.router.chat.markers import Markers
from moonshard.router.chat.reply import ReplyParser
from moonshard.router.chat.tool_choice import Mode, ToolBinder, ToolChoice
from moonshard.router.chat.tools import Tool
from moonshard.router.constraints import Grammars
from moonshard.router.detokenizer import Detokenizer
from moonshard.router.output import ChoiceDelta
from moonshard.sampling import Constraint, ConstraintKind, SamplingParams
from moonshard.tokenizer import Tokenizer
from moonshard.tokenizer.files import TokenizerParts
from tests.unit.router.router_peers import END_OF_TEXT, END_OF_TURN, SPECIALS, VOCAB_SIZE, byte_tokenizer

TOKENIZER = byte_tokenizer()
ENGINE = GrammarEngine(TOKENIZER, VOCAB_SIZE, [END_OF_TURN, END_OF_TEXT])
GRAMMARS = Grammars(TOKENIZER, ENGINE)
BINDER = ToolBinder(TOKENIZER, GRAMMARS.schema_problem)
AUTO, NONE, REQUIRED = map(ToolChoice, Mode)

LOOK = Tool(
    "look", "", {"properties": {"at": {"enum": ["sky", "sea"]}}, "required": ["at"], "additionalProperties": False}
)
GO_TO = Tool("go-to.v2")
ODD = Tool("odd", "", {"properties": {"x": {"if": {}}}})
TOOLS = (LOOK, GO_TO)
SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
AT_SKY = '{"at": "sky"}'


def call(name: str = "look", arguments: str = AT_SKY, index: str = "0") -> str:
    return f"<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"


def section(*calls: str) -> str:
    return SECTION + "".join(calls or (call(),)) + SECTION_END


def takes(sampling: SamplingParams, text: str) -> bool:
    """Whether the reply may be this text and end there."""
    assert sampling.constraint is not None
    grammar = GRAMMARS.grammar_of(sampling.constraint, prompt_opens_thought=True)
    assert grammar.after_token_id is None, "in force from the first token"
    matcher = ENGINE.matcher(grammar.text)
    try:
        for token in TOKENIZER.encode(text, allow_special=True):
            matcher.accept(token)
    except RequestError:
        return False
    return bool(matcher.allowed()[END_OF_TURN // 8] >> END_OF_TURN % 8 & 1)


def bind(choice: ToolChoice, opens_thought: bool, *tools: Tool, constraint: Constraint | None = None) -> SamplingParams:
    return BINDER.bind(SamplingParams(constraint=constraint), tools or TOOLS, choice, opens_thought)


BAD_CALLS = (
    section(call("look", "{}")),
    section(call("look", '{"at": "ground"}')),
    section(call("look", '"sky"')),
    section(call("unheard_of")),
    section(call(index="12345")),
    SECTION + SECTION_END,
    SECTION + call(),
    section() + "more",
)


@pytest.mark.parametrize("thought", ["", "hm</think>", "hm"])
def test_auto_leaves_it_to_the_model_and_holds_calls_to_their_schemas(thought: str) -> None:
    sampling = bind(AUTO, bool(thought))
    says = "" if thought == "hm" else "so "
    good = ["", says, section(), says + section(), section(call(), call("go-to.v2", '{"any": [1]}', "17"), call())]
    assert [text for text in good if not takes(sampling, thought + text)] == []
    assert [text for text in BAD_CALLS if takes(sampling, thought + text)] == []


@pytest.mark.parametrize("thought", ["", "hm</think>", "hm"])
def test_required_is_one_call_or_more(thought: str) -> None:
    sampling = bind(REQUIRED, bool(thought))
    assert takes(sampling, thought + section())
    assert takes(sampling, thought + section(call(), call("go-to.v2", "{}", "1")))
    says = "" if thought == "hm" else "so "
    assert [text for text in ("", says, *BAD_CALLS) if takes(sampling, thought + text)] == []


@pytest.mark.parametrize("choice", [AUTO, REQUIRED])
def test_where_thoughts_hide_calls_they_must_have_ended(choice: ToolChoice) -> None:
    """A gateway looks for calls behind a thought only."""
    sampling = BINDER.bind(SamplingParams(), TOOLS, choice, opens_thought=True, calls_end_thoughts=False)
    assert takes(sampling, "hm</think>" + section())
    assert takes(sampling, "hm") == (choice is AUTO)
    assert [
        text for text in ("hm" + section(), *("</think>" + bad for bad in BAD_CALLS)) if takes(sampling, text)
    ] == []
    free = BINDER.bind(SamplingParams(), TOOLS, choice, opens_thought=False, calls_end_thoughts=False)
    assert free == BINDER.bind(SamplingParams(), TOOLS, choice, opens_thought=False)


@pytest.mark.parametrize("mode", Mode)
def test_named_is_one_call_of_that_tool_whatever_the_mode(mode: Mode) -> None:
    sampling = bind(ToolChoice(mode, "go-to.v2"), False)
    assert takes(sampling, section(call("go-to.v2", "{}")))
    bad = (section(), section(call("go-to.v2", "{}"), call("go-to.v2", "{}", "1")), "", *BAD_CALLS)
    assert [text for text in bad if takes(sampling, text)] == []


def test_none_never_draws_the_tokens_that_open_a_call() -> None:
    openers = {SPECIALS[SECTION], SPECIALS["<|tool_call_begin|>"]}
    given = SamplingParams(logit_bias=((7, 1.0), (SPECIALS[SECTION], 5.0)))
    sampling = BINDER.bind(given, TOOLS, NONE, opens_thought=True)
    assert sampling.constraint is None
    assert dict(sampling.logit_bias) == {7: 1.0} | dict.fromkeys(openers, -100.0)
    assert BINDER.bind(given, (), NONE, opens_thought=True) == given, "nothing to forbid where none is declared"


def test_without_tools_nothing_changes() -> None:
    sampling = SamplingParams(constraint=Constraint(ConstraintKind.JSON_OBJECT))
    assert BINDER.bind(sampling, (), AUTO, opens_thought=True) == sampling


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (Constraint(ConstraintKind.JSON_OBJECT), '{"a": 1}', "so"),
        (Constraint(ConstraintKind.JSON_SCHEMA, '{"type": "integer"}'), "12", "1.5"),
        (Constraint(ConstraintKind.REGEX, "[ab]+"), "abba", "c"),
        (Constraint(ConstraintKind.EBNF, 'root ::= "x" | "y"'), "y", "z"),
    ],
)
@pytest.mark.parametrize("thought", ["", "hm</think>"])
def test_a_constraint_binds_the_content_beside_calls(constraint: Constraint, good: str, bad: str, thought: str) -> None:
    sampling = bind(AUTO, bool(thought), constraint=constraint)
    assert takes(sampling, thought + good)
    assert takes(sampling, thought + section())
    assert [text for text in (bad, "", good + section(), *BAD_CALLS) if takes(sampling, thought + text)] == []
    forced = bind(REQUIRED, bool(thought), constraint=constraint)
    assert not takes(forced, thought + good), "a forced call has no content that could be bound"
    assert takes(forced, thought + section())


def test_a_schema_that_cannot_be_followed_leaves_a_free_object_or_is_refused() -> None:
    sampling = bind(AUTO, False, LOOK, ODD)
    assert takes(sampling, section(call("odd", '{"x": [1]}')))
    assert not takes(sampling, section(call("odd", "[1]")))
    with pytest.raises(RequestError, match=r'tools\[1\].parameters: cannot be followed: .*Unimplemented .*\["if"\]'):
        bind(REQUIRED, False, LOOK, ODD)
    with pytest.raises(RequestError, match=r"tools\[1\].parameters"):
        bind(ToolChoice(name="odd"), False, LOOK, ODD)
    assert takes(bind(ToolChoice(name="look"), False, LOOK, ODD), section())


@pytest.mark.parametrize(
    ("choice", "tools", "complaint"),
    [
        (REQUIRED, (), "tool_choice: asks for a call, but tools declares none"),
        (ToolChoice(name="look"), (), "tool_choice: asks for a call, but tools declares none"),
        (ToolChoice(name="loook"), TOOLS, "tool_choice.name: 'loook' is not among tools"),
    ],
)
def test_choices_that_cannot_be_met_are_refused(choice: ToolChoice, tools: tuple[Tool, ...], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        BINDER.bind(SamplingParams(), tools, choice, opens_thought=False)


@pytest.mark.parametrize(
    "constraint",
    [Constraint(ConstraintKind.CHOICE, choices=("a",)), Constraint(ConstraintKind.STRUCTURAL_TAG, "{}")],
)
def test_constraints_that_do_not_go_with_tools_are_refused(constraint: Constraint) -> None:
    with pytest.raises(RequestError, match=f"constraint: {constraint.kind.value} cannot be combined with tools"):
        bind(AUTO, False, constraint=constraint)
    with pytest.raises(RequestError, match="constraint: json_schema: not JSON"):
        bind(AUTO, False, constraint=Constraint(ConstraintKind.JSON_SCHEMA, "{"))


def test_a_vocabulary_without_call_tokens() -> None:
    parts = TokenizerParts(lambda text: list(text.encode()), lambda text: [], {0: b"a"}, {"<end>": END_OF_TURN})
    binder = ToolBinder(Tokenizer(parts), GRAMMARS.schema_problem)
    assert binder.bind(SamplingParams(), TOOLS, AUTO, opens_thought=False) == SamplingParams()
    assert binder.bind(SamplingParams(), TOOLS, NONE, opens_thought=False) == SamplingParams()
    with pytest.raises(RequestError, match="tool_choice: this checkpoint has no tokens for tool calls"):
        binder.bind(SamplingParams(), TOOLS, REQUIRED, opens_thought=False)


def test_the_declared_type_of_parameters_is_an_object() -> None:
    """A schema may leave it out; arguments that are no object would break every client."""
    tag = json.loads(bind(AUTO, False, Tool("f", "", {"type": "string"})).constraint.value)  # type: ignore[union-attr]
    assert '"json_schema": {"type": "object"}' in json.dumps(tag)
    assert replace(LOOK, parameters=None).as_dict() == {"type": "function", "function": {"name": "look"}}


MANY_FIELDS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 5},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["c", "f", None]},
        "hours": {"type": "array", "items": {"anyOf": [{"const": 6}, {"type": "boolean"}]}, "maxItems": 2},
        "place": {"$ref": "#/$defs/Place"},
    },
    "required": ["city", "place"],
    "additionalProperties": False,
    "$defs": {"Place": {"type": "object", "properties": {"in": {"type": "boolean"}}, "additionalProperties": False}},
}


def any_walk(sampling: SamplingParams, chance: random.Random) -> list[int]:
    """A reply of a model that draws every allowed token alike."""
    assert sampling.constraint is not None
    matcher = ENGINE.matcher(GRAMMARS.grammar_of(sampling.constraint, prompt_opens_thought=True).text)
    reply: list[int] = []
    while not matcher.is_stopped:
        mask = matcher.allowed()
        token = chance.choice([number for number in range(VOCAB_SIZE) if mask[number // 8] >> number % 8 & 1])
        if token in (END_OF_TURN, END_OF_TEXT):
            break
        matcher.accept(token)
        reply.append(token)
    return reply


@pytest.mark.parametrize("choice", [AUTO, REQUIRED, ToolChoice(name="look")])
@pytest.mark.parametrize("opens_thought", [False, True])
def test_every_reply_that_the_grammar_allows_parses_to_calls_of_their_schemas(
    choice: ToolChoice, opens_thought: bool
) -> None:
    schemas = {"look": MANY_FIELDS, "go-to.v2": {"type": "object", "properties": {}, "additionalProperties": False}}
    tools = tuple(Tool(name, "", schema) for name, schema in schemas.items())
    sampling, chance, num_calls = bind(choice, opens_thought, *tools), random.Random(7), 0
    for _ in range(40):
        reply = any_walk(sampling, chance)
        calls = CallReader(tools, 0)
        text = Detokenizer(TOKENIZER.stream(), (END_OF_TURN,))
        parser = ReplyParser(Markers.of(TOKENIZER), text, opens_thought, opens_thought, calls)
        new = parser.push(ChoiceDelta(0, tuple(reply), TOKENIZER.decode(reply)))
        assert calls.num_calls or not choice.asks_for_call
        for made in new.calls:
            jsonschema.validate(json.loads(made.arguments), schemas[made.name])
        num_calls += calls.num_calls
    assert num_calls >= 10
