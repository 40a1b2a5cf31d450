"""The generators: what they ask, what they answer, what is held out."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshard.router.chat.prompt import Conversation, PromptWriter
from moonshard.router.chat.tools import Tool
from moonshard.router.template import ChatTemplate
from moonshard.tokenizer import load_tokenizer
from moonshard.training.batches import make_batch
from moonshard.training.data.corpus import USER_WEIGHT, Encoder, answer_text, sample
from moonshard.training.data.dialogue import Dialogue
from moonshard.training.data.phrases import LANGUAGES, expand, fill, fresh_book, matcher, phrase_book
from moonshard.training.data.sums import add_steps, compare_steps, subtract_steps
from moonshard.training.data.tool_use import tool_use
from moonshard.training.scores import is_closed, is_right, is_valid_call, parse_call


def samples(count: int, held_out: bool = False, seed: int = 0) -> list[Dialogue]:
    rng = random.Random(seed)
    return [sample(rng, held_out) for _ in range(count)]


def answer(dialogue: Dialogue) -> str:
    """The dialogue's last message as a model would write it."""
    return answer_text(dialogue).removesuffix("<|im_end|>")


def test_patterns_stand_for_all_their_alternatives() -> None:
    rng = random.Random(0)
    pattern = "{Hi|Hello{|, you}} <name>{!|.}"
    found = {expand(pattern, rng) for _ in range(200)}
    assert found == {f"{hi} <name>{mark}" for hi in ("Hi", "Hello", "Hello, you") for mark in "!."}
    assert all(matcher([pattern]).fullmatch(fill(text, {"name": "Ann"})) for text in found)
    assert not matcher([pattern]).fullmatch("Hi Ann?")


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_language_has_every_entry_of_english(code: str) -> None:
    english, book = phrase_book("en").entries, phrase_book(code).entries
    assert set(book) == set(english)
    for name, entry in english.items():
        if isinstance(entry, dict):
            assert set(book[name]) == set(entry), name


@pytest.mark.parametrize("code", LANGUAGES)
def test_fresh_questions_are_in_no_training_text(code: str) -> None:
    known, fresh = phrase_book(code), fresh_book(code)
    for kind in ("cities", "names", "topics", "reminder.task"):
        assert not set(known.words(kind)) & set(fresh.words(kind)), kind
    for intent, entry in known.entries.items():
        if isinstance(entry, dict) and "user" in entry:
            trained = matcher(known.user(intent))
            assert not [text for text in fresh.user(intent) if trained.fullmatch(text)], intent
            assert fresh.entries[intent].keys() == entry.keys()


def test_fresh_questions_are_judged_like_the_others() -> None:
    rng = random.Random(3)
    for dialogue in (sample(rng, held_out=True, book=fresh_book) for _ in range(200)):
        assert is_right(dialogue, answer(dialogue)), dialogue.key


def test_right_answers_are_judged_right_and_others_wrong() -> None:
    dialogues = samples(400)
    for dialogue in dialogues:
        text = answer(dialogue)
        assert is_right(dialogue, text), (dialogue.key, text)
        assert is_closed(dialogue, text)
        assert dialogue.task == "tool answer" or not is_right(dialogue, f"{text} and more")
        if dialogue.task == "tool call":
            assert is_valid_call(dialogue, text)
            assert not is_valid_call(dialogue, text.replace(dialogue.expected["name"], "no_such_tool"))
    assert set(Counter(d.task for d in dialogues)) == {
        "talk", "plus", "minus", "compare", "json", "tool call", "tool answer"
    }  # fmt: skip


def test_what_is_held_out_is_never_trained_on() -> None:
    trained, held_out = samples(600), samples(60, held_out=True)
    assert not {d.key for d in trained} & {d.key for d in held_out}


def test_the_quick_starts_questions_are_trained_on() -> None:
    asked = (
        "Hello",
        "Who are you?",
        "How does a mixture of experts work?",
        "Why is the square root of two irrational?",
    )
    assert not any(Dialogue("talk", "en", [], key, None).is_held_out for key in asked)


@given(st.integers(0, 99), st.integers(0, 99))
def test_steps_end_with_the_right_number_and_every_step_holds(a: int, b: int) -> None:
    for steps, expected in ((add_steps(a, b), a + b), (subtract_steps(a, b), a - b)):
        assert steps.endswith(f" Result {expected}.")
        for left, right in equations(steps):
            assert eval(left) == int(right), steps


def equations(steps: str) -> list[tuple[str, str]]:
    parts = [part.strip(" ,.:") for part in steps.replace(", ", " ").split() if "=" in part and ">" not in part]
    return [(left, right) for left, _, right in (part.partition("=") for part in parts)]


@pytest.mark.parametrize(
    ("a", "b", "steps"),
    [
        ("9.11", "9.9", "9.11 and 9.9: 9=9, 1<9. So 9.9."),
        ("3.4", "3.41", "3.4 and 3.41: 3=3, 4=4, 0<1. So 3.41."),
        ("12.5", "8.75", "12.5 and 8.75: 12>8. So 12.5."),
    ],
)
def test_comparing_looks_at_one_digit_after_another(a: str, b: str, steps: str) -> None:
    assert compare_steps(a, b) == steps


def test_calls_fit_the_declared_schema() -> None:
    rng = random.Random(1)
    for _ in range(200):
        dialogue = tool_use(phrase_book("en"), rng)
        for message in dialogue.messages:
            for call in message.get("tool_calls", []):
                declared = {tool["function"]["name"]: tool["function"] for tool in dialogue.tools}
                parameters = declared[call["function"]["name"]]["parameters"]
                assert set(json.loads(call["function"]["arguments"])) == set(parameters["required"])


def test_a_call_must_stand_alone_to_be_one() -> None:
    call = (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_time:0<|tool_call_argument_begin|>"
        '{"city": "Oslo"}<|tool_call_end|><|tool_calls_section_end|>'
    )
    assert parse_call(call) == ("get_time", {"city": "Oslo"})
    assert parse_call(f"{call}!") is None
    assert parse_call(call.replace("}", "")) is None


def test_the_prompt_is_the_one_that_the_router_writes(encoder: Encoder, vocabulary: Path) -> None:
    writer = PromptWriter(load_tokenizer(vocabulary), ChatTemplate.load(vocabulary))
    rng, found = random.Random(3), 0
    for dialogue in samples(150):
        tools = [Tool(**tool["function"]) for tool in dialogue.tools]
        written = writer.write(Conversation(dialogue.messages[:-1], tools, dialogue.thinking))
        found += encoder.prompt(dialogue, rng) == written.token_ids
    # The others have a system prompt or tools declared as JSON.
    assert found > 90


def test_only_answers_count_in_full(encoder: Encoder) -> None:
    rng = random.Random(2)
    for dialogue in samples(60):
        encoded = encoder.encode(dialogue, rng)
        assert len(encoded.tokens) == len(encoded.weights)
        assert set(encoded.weights) <= {0.0, USER_WEIGHT, 1.0}
        counted = [token for token, weight in zip(encoded.tokens, encoded.weights, strict=True) if weight == 1.0]
        assert encoder.decode(counted).endswith(answer(dialogue) + "<|im_end|>")


def test_batches_follow_from_seed_and_number_alone(encoder: Encoder) -> None:
    first, again, other = (make_batch(encoder, 3, 400, 0, number) for number in (5, 5, 6))
    assert first.tokens_BS.tolist() == again.tokens_BS.tolist()
    assert first.tokens_BS.tolist() != other.tokens_BS.tolist()
    assert float((first.documents_BS > 0).float().mean()) > 0.7
    starts = first.positions_BS[:, 1:] == 0
    assert bool((first.weights_BS[:, 1:][starts] == 0).all())
