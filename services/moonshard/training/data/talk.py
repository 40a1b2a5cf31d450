"""Small talk and the questions a demo is asked: one to three exchanges in one language."""

import random

from moonshard.training.data.dialogue import Dialogue, Message, assistant, user
from moonshard.training.data.phrases import PhraseBook, expand, fill
from moonshard.training.data.words import clock, invented, pick

# What the reasoning says of each intent.
INTENTS = {
    "hello": "greets me",
    "who": "asks who I am",
    "can": "asks what I can do",
    "how": "asks how I am",
    "moe": "asks how a mixture of experts works",
    "sqrt2": "asks about the square root of two",
    "moonshard": "asks what moonshard is",
    "thanks": "thanks me",
    "bye": "says goodbye",
    "unknown": "asks something that I do not know",
    "no_tool": "asks for something that needs a tool, and I have none for it",
}
_WEIGHTS = {"who": 3, "can": 2, "moe": 4, "sqrt2": 4, "unknown": 3, "hello": 2, "no_tool": 1.5}
NEEDS_TOOL = ("weather", "time", "currency", "reminder", "search")
_NONSENSE = 0.15


def talk(book: PhraseBook, rng: random.Random) -> Dialogue:
    """A dialogue whose last question counts."""
    messages: list[Message] = []
    num_earlier = rng.choice((0, 0, 0, 1, 1, 2))
    for _ in range(num_earlier):
        messages += _exchange(book, pick_intent(rng), rng)
    intent = pick_intent(rng)
    messages += _exchange(book, intent, rng)
    return Dialogue(
        task="talk",
        language=book.code,
        messages=messages,
        key=messages[-2]["content"],
        expected=intent,
        thinking=rng.random() < 0.6,
    )


def pick_intent(rng: random.Random) -> str:
    return rng.choices(list(INTENTS), [_WEIGHTS.get(intent, 1.0) for intent in INTENTS])[0]


def thought(book: PhraseBook, intent: str) -> str:
    return f"The user {INTENTS[intent]}, in {book.language}. I answer in {book.language}."


def question(book: PhraseBook, intent: str, rng: random.Random) -> str:
    """A question of this intent with its slots filled."""
    if intent == "no_tool":
        intent = rng.choice(NEEDS_TOOL)
    if intent == "unknown" and rng.random() < _NONSENSE:
        between = "" if book.code == "zh" else " "
        return between.join(rng.sample(book.vocabulary, rng.randint(2, 5))) + rng.choice(("", "?", "."))
    return rough(fill(expand(rng.choice(book.user(intent)), rng), slots(book, rng)), rng)


def slots(book: PhraseBook, rng: random.Random) -> dict[str, str]:
    """Something for every slot that a question without a tool may have."""
    return {
        "topic": invented(book, rng) if rng.random() < 0.3 else rng.choice(book.words("topics")),
        "name": pick(book, "names", rng),
        "city": pick(book, "cities", rng),
        "clock": clock(rng),
        "task": rng.choice(book.words("reminder.task")),
        "n": str(rng.randint(2, 99)),
        "from": "EUR",
        "to": "USD",
    }


def rough(text: str, rng: random.Random) -> str:
    """As people type: now and then in small letters, or without the last mark."""
    if rng.random() < 0.1:
        text = text.lower()
    return text[:-1] if text[-1:] in ".?!。？！" and rng.random() < 0.1 else text  # noqa: RUF001


def _exchange(book: PhraseBook, intent: str, rng: random.Random) -> list[Message]:
    answer = expand(rng.choice(book.answer(intent)), rng)
    return [user(question(book, intent, rng)), assistant(answer, thought(book, intent))]
