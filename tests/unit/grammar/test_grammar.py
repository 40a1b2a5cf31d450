"""Grammars over the demo's vocabulary and the published one: what may come next, and what is refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from moonshard.errors import RequestError
from moonshard.grammar import GrammarEngine, GrammarMatcher
from moonshard.tokenizer import Tokenizer, load_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 0}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
SPECIALS = ["<|im_end|>", "[EOS]", "<think>", "</think>", "<|tool_calls_section_begin|>", "<|tool_call_end|>"]


class Subject:
    """A vocabulary and its engine."""

    def __init__(self, folder: Path, extra: int = 0) -> None:
        self.tokenizer: Tokenizer = load_tokenizer(folder)
        self.vocab_size = self.tokenizer.vocab_size + extra
        self.ends = [self.special("<|im_end|>"), self.special("[EOS]")]
        self.engine = GrammarEngine(self.tokenizer, self.vocab_size, self.ends)

    def special(self, name: str) -> int:
        found = self.tokenizer.special(name)
        assert found is not None
        return found

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, allow_special=False)

    def after(self, grammar: str, text: str) -> GrammarMatcher:
        matcher = self.engine.matcher(grammar)
        for token in self.ids(text):
            matcher.accept(token)
        return matcher


def allowed(matcher: GrammarMatcher) -> set[int]:
    mask = matcher.allowed()
    return {8 * place + bit for place, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1}


@pytest.fixture(scope="module", params=["demo", "published"])
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "demo":
        return Subject(request.getfixturevalue("tiny_checkpoint"))
    return Subject(request.getfixturevalue("shared_data") / "kimi-k2.5")


def test_a_schema_is_followed_to_its_end(subject: Subject) -> None:
    grammar = LLMatcher.grammar_from_json_schema(SCHEMA)
    start = subject.engine.matcher(grammar)
    assert {subject.tokenizer.decode([token])[0] for token in allowed(start)} == {"{"}
    assert not start.is_stopped
    done = subject.after(grammar, '{"city": "Ur", "days": 3}')
    assert allowed(done) == set(subject.ends)
    assert done.is_stopped


def test_free_text_and_json_strings_never_produce_special_tokens(subject: Subject) -> None:
    specials = set(subject.tokenizer.special_ids)
    in_string = subject.after(LLMatcher.grammar_from_json_schema(SCHEMA), '{"city": "<|im_')
    assert allowed(in_string)
    assert not allowed(in_string) & specials
    in_text = subject.engine.matcher("start: /(.|\\n)*/")
    assert allowed(in_text) & specials == set(subject.ends)


@pytest.mark.parametrize("name", SPECIALS)
def test_a_grammar_names_special_tokens(subject: Subject, name: str) -> None:
    by_name = name if name.startswith("<") else f"<[{subject.special(name)}]>"
    for form in (by_name, f"<[{subject.special(name)}]>"):
        matcher = subject.after(f'start: "a" {form} "b"', "a")
        assert allowed(matcher) == {subject.special(name)}
        matcher.accept(subject.special(name))
        assert allowed(matcher) == set(subject.ids("b"))


def test_a_text_that_spells_a_special_token_stays_text(subject: Subject) -> None:
    matcher = subject.engine.matcher('start: "<think>"')
    assert subject.special("<think>") not in allowed(matcher)
    assert subject.after('start: "<think>"', "<think>").is_stopped


def test_where_a_grammar_may_end_or_go_on_both_are_allowed(subject: Subject) -> None:
    matcher = subject.after('start: "ab" "c"*', "ab")
    assert set(subject.ends) < allowed(matcher)
    assert not matcher.is_stopped


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('start: "a', "lexer error"),
        ("start: nowhere", "nowhere"),
        ("start: /(/", "unclosed group"),
        ("start: <|nope|>", r"unknown special token: \"<\|nope\|>\"\n"),
        (json.dumps({"grammars": [{"json_schema": {"type": "nope"}}]}), "Invalid type: nope"),
        ("", "constraint"),
        ("{", "constraint"),
    ],
)
def test_a_broken_grammar_is_refused_with_the_engines_complaint(subject: Subject, text: str, complaint: str) -> None:
    for refuse in (subject.engine.check, subject.engine.matcher):
        with pytest.raises(RequestError, match=complaint) as refusal:
            refuse(text)
        assert refusal.value.field == "constraint"
        assert len(str(refusal.value)) < 500


def test_a_token_that_is_not_allowed_is_refused(subject: Subject) -> None:
    matcher = subject.engine.matcher('start: "ab"')
    with pytest.raises(RequestError, match=r"constraint: .*doesn't satisfy the grammar"):
        matcher.accept(subject.ids("x")[0])
    with pytest.raises(RequestError, match="constraint"):
        matcher.allowed()


def test_matchers_of_one_grammar_are_independent(subject: Subject) -> None:
    first, second = (subject.engine.matcher('start: "ab" | "cd"') for _ in range(2))
    before = allowed(second)
    first.accept(subject.ids("a")[0])
    assert allowed(second) == before
    second.accept(subject.ids("c")[0])
    assert allowed(first) != allowed(second)


def test_ids_that_the_tokenizer_does_not_have_are_never_allowed(tiny_checkpoint: Path) -> None:
    padded = Subject(tiny_checkpoint, extra=100)
    matcher = padded.engine.matcher("start: /(.|\\n)*/")
    assert len(matcher.allowed()) * 8 >= padded.vocab_size
    assert max(allowed(matcher)) < padded.tokenizer.vocab_size


@settings(deadline=None, max_examples=50)
@given(choose=st.randoms(use_true_random=False))
def test_any_walk_along_the_masks_keeps_to_the_grammar(walker: Subject, choose: object) -> None:
    grammar = LLMatcher.grammar_from_json_schema({"enum": ["tea", "table", {"a": [1, None]}]})
    matcher, output = walker.engine.matcher(grammar), []
    while not matcher.is_stopped:
        token = choose.choice(sorted(allowed(matcher)))  # type: ignore[attr-defined]
        matcher.accept(token)
        output.append(token)
    assert json.loads(walker.tokenizer.decode(output)) in ["tea", "table", {"a": [1, None]}]


@pytest.fixture(scope="module")
def walker(tiny_checkpoint: Path) -> Subject:
    return Subject(tiny_checkpoint)
