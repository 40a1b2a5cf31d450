"""Constraints of a request as grammars: what they let through, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from moonshard.errors import RequestError
from moonshard.grammar import GrammarEngine, GrammarMatcher
from moonshard.router.constraints import Grammars
from moonshard.router.requests import Grammar
from moonshard.sampling import Constraint, ConstraintKind
from moonshard.tokenizer import Tokenizer, load_tokenizer

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Ur", "Uruk"]}},
    "required": ["city"],
    "additionalProperties": False,
}
SECTION, CALL, ARGUMENTS, CALL_END = (
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)
ANY_TEXT = {"type": "any_text"}


class Bench:
    """Follows texts through a constraint's grammar."""

    def __init__(self, checkpoint: Path) -> None:
        self.tokenizer: Tokenizer = load_tokenizer(checkpoint)
        ends = [self.tokenizer.special_tokens[name] for name in ("<|im_end|>", "[EOS]")]
        self.engine = GrammarEngine(self.tokenizer, self.tokenizer.vocab_size, ends)
        self.grammars = Grammars(self.tokenizer, self.engine)
        self.end = ends[0]

    def grammar(self, kind: ConstraintKind, value: str = "", *choices: str) -> Grammar:
        return self.grammars.grammar_of(Constraint(kind, value, choices), prompt_opens_thought=False)

    def tag(self, shape: Any) -> Grammar:
        return self.grammar(ConstraintKind.STRUCTURAL_TAG, json.dumps({"type": "structural_tag", "format": shape}))

    def takes(self, grammar: Grammar, text: str) -> bool:
        """Whether the text is a whole output: spellings of special tokens in it are those tokens."""
        matcher = self.engine.matcher(grammar.text)
        try:
            for token in self.tokenizer.encode(text, allow_special=True):
                matcher.accept(token)
        except RequestError:
            return False
        return self.may_end(matcher)

    def may_end(self, matcher: GrammarMatcher) -> bool:
        return bool(matcher.allowed()[self.end // 8] >> self.end % 8 & 1)


@pytest.fixture(scope="module")
def bench(tiny_checkpoint: Path) -> Bench:
    return Bench(tiny_checkpoint)


def const(text: str) -> dict[str, str]:
    return {"type": "const_string", "value": text}


def tag(name: str, end: str = CALL_END) -> dict[str, Any]:
    content = {"type": "json_schema", "json_schema": CITY}
    return {"begin": f"{SECTION}{CALL}functions.{name}:0{ARGUMENTS}", "content": content, "end": end}


def call(name: str, arguments: str = '{"city": "Ur"}') -> str:
    return f"{SECTION}{CALL}functions.{name}:0{ARGUMENTS}{arguments}{CALL_END}"


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad"),
    [
        (
            "json_schema",
            json.dumps(CITY),
            ['{"city": "Ur"}', '{"city":"Uruk"}', '{\n  "city": "Ur"\n}'],
            ['{"city": 1}', "{}"],
        ),
        ("json_schema", "true", ["1", "[null]", '{"a": 1}'], ["", "nope"]),
        ("json_object", "", ["{}", '{"a": [1, {"b": null}]}'], ["[]", "1", "{", '{"a":  1}', "{\n\n}"]),
        ("regex", "a/b+", ["a/b", "a/bbb"], ["a/", "xa/b"]),
        ("regex", r"^\/\n$", ["/\n"], ["/", "\\n"]),
        ("ebnf", 'root ::= "a" tail\ntail ::= "b" | "c"', ["ab", "ac"], ["a", "ad"]),
        ("ebnf", 'root ::= sum\nsum ::= "(" sum ")" | [0-9]+', ["7", "((12))"], ["((1)"]),
        ("ebnf", 'start: "x" /y*/', ["x", "xyy"], ["y"]),
        ("ebnf", 'start: "x" <think>', ["x<think>"], ["x"]),
    ],
)
def test_what_a_constraint_lets_through(bench: Bench, kind: str, value: str, good: list[str], bad: list[str]) -> None:
    grammar = bench.grammar(ConstraintKind(kind), value)
    assert [text for text in good if not bench.takes(grammar, text)] == []
    assert [text for text in bad if bench.takes(grammar, text)] == []


def test_a_choice_is_text_whatever_it_spells(bench: Bench) -> None:
    grammar = bench.grammar(ConstraintKind.CHOICE, "", "yes", "no", 'a "quote"\n', "<think>")
    assert all(bench.takes(grammar, text) for text in ("yes", "no", 'a "quote"\n'))
    assert not bench.takes(grammar, "<think>"), "the special token"
    assert not bench.takes(grammar, "ye")


def test_a_grammar_waits_for_the_end_of_an_open_thought(bench: Bench) -> None:
    end = bench.tokenizer.special("</think>")
    for opens, from_first, waits_for in ((True, False, end), (True, True, None), (False, False, None)):
        constraint = Constraint(ConstraintKind.JSON_OBJECT, from_first_token=from_first)
        assert bench.grammars.grammar_of(constraint, opens).after_token_id == waits_for


@pytest.mark.parametrize(
    ("shape", "good", "bad"),
    [
        (const("a</think>"), ["a</think>"], ["a"]),
        ({"type": "json_schema", "json_schema": CITY}, ['{"city": "Ur"}'], ["{}"]),
        ({"type": "json_schema", "json_schema": True, "style": "json"}, ["3"], [""]),
        ({"type": "regex", "pattern": "[0-9]+"}, ["12"], ["", "a"]),
        ({"type": "grammar", "grammar": 'root ::= "a" | "b"'}, ["a", "b"], ["ab"]),
        (ANY_TEXT, ["", "a\nb"], ["a<think>"]),
        (ANY_TEXT | {"excludes": ["</think>"]}, ["a"], ["a</think>"]),
        ({"type": "token", "token": "<think>"}, ["<think>"], ["think"]),
        (
            {"type": "sequence", "elements": [{"type": "regex", "pattern": "a+"}, const("b")]},
            ["ab", "aab"],
            ["a", "b"],
        ),
        (
            {"type": "sequence", "elements": [ANY_TEXT, const("END"), ANY_TEXT]},
            ["END", "some END", "ENDEND", "a END b"],
            ["", "some"],
        ),
        ({"type": "or", "elements": [const("a"), {"type": "token", "token": "<think>"}]}, ["a", "<think>"], [""]),
        ({"type": "optional", "content": const("a")}, ["", "a"], ["aa"]),
        ({"type": "star", "content": const("a")}, ["", "aaa"], ["b"]),
        ({"type": "plus", "content": const("a")}, ["a", "aaa"], [""]),
        ({"type": "repeat", "min": 2, "max": 3, "content": const("a")}, ["aa", "aaa"], ["a", "aaaa"]),
        ({"type": "repeat", "min": 2, "max": -1, "content": const("a")}, ["aa", "aaaaa"], ["a"]),
        (
            {"type": "tag", "begin": "<a>", "content": ANY_TEXT, "end": ["</a>", "</b>"]},
            ["<a>x</a>", "<a>x</b>"],
            ["<a>x", "<a></a>x"],
        ),
        (
            {"type": "tag", "begin": "<think>", "content": ANY_TEXT, "end": "</think>"},
            ["<think>x</think>"],
            ["<think>x", "x</think>"],
        ),
        (
            {
                "type": "tag",
                "begin": {"type": "token", "token": "<think>"},
                "content": ANY_TEXT,
                "end": {"type": "token", "token": "</think>"},
            },
            ["<think>x</think>"],
            ["<think>x"],
        ),
        (
            {
                "type": "sequence",
                "elements": [
                    {"type": "tag", "begin": "<think>", "content": ANY_TEXT, "end": "</think>"},
                    {"type": "triggered_tags", "triggers": [SECTION], "tags": [tag("f")]},
                ],
            },
            ["<think>hm</think>", f"<think>hm</think>so {call('f')} done"],
            ["so", f"<think>{call('f')}"],
        ),
        (
            {
                "type": "tag",
                "begin": "",
                "content": {
                    "type": "triggered_tags",
                    "triggers": ["<f"],
                    "tags": [{"begin": "<f1>", "content": {"type": "regex", "pattern": "[0-9]"}, "end": "</f>"}],
                },
                "end": "</all>",
            },
            ["</all>", "a<f1>2</f>b</all>"],
            ["a<f1>2</f>b", "a<f2></all>"],
        ),
    ],
)
def test_what_a_structural_tag_lets_through(bench: Bench, shape: Any, good: list[str], bad: list[str]) -> None:
    grammar = bench.tag(shape)
    assert [text for text in good if not bench.takes(grammar, text)] == []
    assert [text for text in bad if bench.takes(grammar, text)] == []


@pytest.mark.parametrize(
    ("at_least_one", "stop_after_first", "good", "bad"),
    [
        (False, False, ["", "so", f"so {call('f')}", f"{call('g')} and {call('f')} done"], [call("f")[:-1], call("h")]),
        (True, False, [call("f"), f"{call('f')}{call('g')}", f"{call('f')} done"], ["", f"so {call('f')}"]),
        (False, True, ["", "so", f"so {call('f')}"], [f"{call('f')} done", f"{call('f')}{call('f')}"]),
        (True, True, [call("f"), call("g")], ["", f"so {call('f')}", f"{call('f')} done"]),
    ],
)
def test_triggered_tags(
    bench: Bench, at_least_one: bool, stop_after_first: bool, good: list[str], bad: list[str]
) -> None:
    shape = {"type": "triggered_tags", "triggers": [SECTION], "tags": [tag("f"), tag("g")]}
    grammar = bench.tag(shape | {"at_least_one": at_least_one, "stop_after_first": stop_after_first})
    assert [text for text in good if not bench.takes(grammar, text)] == []
    assert [text for text in bad if bench.takes(grammar, text)] == []
    assert not bench.takes(grammar, call("f", '{"city": "Rome"}'))


@pytest.mark.parametrize(
    ("at_least_one", "stop_after_first", "good", "bad"),
    [
        (False, False, ["", "(1)", "(1), (2), (3)"], ["(1), ", "x", "(1)(2)"]),
        (True, False, ["(1)", "(1), (2)"], [""]),
        (False, True, ["", "(1)"], ["(1), (2)"]),
        (True, True, ["(1)"], ["", "(1), (2)"]),
    ],
)
def test_tags_with_separator(
    bench: Bench, at_least_one: bool, stop_after_first: bool, good: list[str], bad: list[str]
) -> None:
    tags = [{"type": "tag", "begin": "(", "content": {"type": "regex", "pattern": "[0-9]"}, "end": ")"}]
    shape = {"type": "tags_with_separator", "tags": tags, "separator": ", ", "at_least_one": at_least_one}
    grammar = bench.tag(shape | {"stop_after_first": stop_after_first})
    assert [text for text in good if not bench.takes(grammar, text)] == []
    assert [text for text in bad if bench.takes(grammar, text)] == []


@pytest.mark.parametrize(("begin", "end"), [("<function=f>", "</function>"), ("<think>f:", "</think>")])
def test_the_older_form(bench: Bench, begin: str, end: str) -> None:
    structures = [{"begin": begin, "schema": CITY, "end": end}]
    old = {"structures": structures, "triggers": [begin.partition("f>")[0].partition("f:")[0]]}
    grammar = bench.grammar(ConstraintKind.STRUCTURAL_TAG, json.dumps(old))
    good = f'{begin}{{"city": "Ur"}}{end}'
    assert all(bench.takes(grammar, text) for text in ("", "so", good, f"a {good} b {good}"))
    assert not bench.takes(grammar, f"{begin}{{}}{end}")


@pytest.mark.parametrize(
    ("kind", "value", "complaint"),
    [
        ("json_schema", "{", "json_schema: not JSON"),
        ("json_schema", "[" * 100_000, "json_schema: not JSON"),
        ("json_schema", "[1]", "json_schema: expected an object"),
        ("json_schema", '{"type": "nope"}', "Invalid type: nope"),
        ("json_schema", '{"if": {}}', r'Unimplemented keys: \["if"\]'),
        ("regex", "(", "unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "", "regex: must not be empty"),
        ("ebnf", "", "ebnf: must not be empty"),
        ("ebnf", 'root ::= "a" missing', "ebnf: Rule 'missing' not found"),
        ("ebnf", "root ::= " + "(" * 100_000, "ebnf: "),
        ("ebnf", "start: <|nope|>", "unknown special token"),
        ("choice", "", "choice: expected 1 to 1024 values, got 0"),
        ("structural_tag", "{", "structural_tag: not JSON"),
        ("structural_tag", "[]", "structural_tag: expected a JSON object, got list"),
        ("structural_tag", '{"type": "other"}', "structural_tag: type: expected 'structural_tag', got 'other'"),
        ("structural_tag", "{}", "structural_tag: format: expected an object"),
        ("structural_tag", '{"structures": []}', "structural_tag: structures: expected a list of at least one"),
        ("structural_tag", '{"structures": [{"begin": "a", "end": "b"}], "triggers": ["a"]}', "json_schema: expected"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(bench: Bench, kind: str, value: str, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint) as refusal:
        bench.grammar(ConstraintKind(kind), value)
    assert refusal.value.field == "constraint"


def nested(depth: int) -> Any:
    return {"type": "star", "content": nested(depth - 1)} if depth else const("a")


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        ({"type": "qwen_xml_parameter", "json_schema": {}}, "format.type: .*; got 'qwen_xml_parameter'"),
        ({"type": ["a"]}, "format.type"),
        ({"type": "sequence", "elements": [{"type": "nope"}]}, r"format.elements\[0\].type: .*got 'nope'"),
        ({"type": "sequence", "elements": []}, "format.elements: expected a list of at least one"),
        ({"type": "sequence", "elements": [1]}, "format.elements: expected a list"),
        ({"type": "const_string"}, "format.value: expected a text, got 'None'"),
        ({"type": "star", "content": 3}, "format.content.type"),
        ({"type": "json_schema", "json_schema": {}, "style": "qwen_xml"}, "style: expected 'json', got 'qwen_xml'"),
        ({"type": "token", "token": "nope"}, "format.token: expected the name of a special token"),
        ({"type": "repeat", "min": 3, "max": 2, "content": ANY_TEXT}, "max: must be -1 or at least min = 3, got 2"),
        ({"type": "repeat", "min": True, "max": 2, "content": ANY_TEXT}, "format.min: expected a whole number"),
        (ANY_TEXT | {"excludes": ["x"]}, "format.excludes: only special tokens can be excluded, got 'x'"),
        (ANY_TEXT | {"max_tokens": 3}, "format.max_tokens: is not served"),
        (
            {"type": "triggered_tags", "triggers": ["<x"], "tags": [{"begin": "<y", "content": ANY_TEXT, "end": ""}]},
            r"format.tags\[0\].begin: '<y' begins with none of the triggers",
        ),
        (
            {"type": "sequence", "elements": [ANY_TEXT, {"type": "regex", "pattern": "a"}]},
            "any_text must be followed by",
        ),
        (
            {"type": "star", "content": {"type": "sequence", "elements": [const("a"), ANY_TEXT]}},
            "any_text must be followed by",
        ),
        (nested(40), "nested deeper than 32"),
    ],
)
def test_structural_tags_are_refused_by_key(bench: Bench, shape: Any, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint) as refusal:
        bench.tag(shape)
    assert refusal.value.field == "constraint"


def test_a_long_row_of_optional_parts_is_no_riddle(bench: Bench) -> None:
    options = [
        {"type": "optional", "content": ANY_TEXT},
        {"type": "optional", "content": {"type": "token", "token": "<think>"}},
    ]
    assert bench.takes(bench.tag({"type": "sequence", "elements": options * 100}), "a<think>b")
