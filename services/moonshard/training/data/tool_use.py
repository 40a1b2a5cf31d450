"""Questions that need a declared tool: the call, the tool's turn and the answer from what it returned."""

import json
import random
from typing import Any

from moonshard.training.data.dialogue import Dialogue, Message, assistant, user
from moonshard.training.data.phrases import PhraseBook, expand, fill
from moonshard.training.data.talk import pick_intent, question, rough, thought
from moonshard.training.data.tool_schemas import FAMILIES, Schema, Tool, draw, other
from moonshard.training.data.words import CURRENCIES, clock, invented, pick


def tool_use(book: PhraseBook, rng: random.Random) -> Dialogue:
    """Mostly a call or the answer after it; sometimes a question that the declared tools do not help with."""
    kind = rng.choice(tuple(FAMILIES))
    tool = draw(FAMILIES[kind], rng)
    if rng.random() < 0.15:
        return _without_call(book, _beside(kind, rng), rng)
    tools = [tool.schema, *_beside(kind, rng)]
    rng.shuffle(tools)
    return _with_call(book, kind, tool, tools, rng)


def _with_call(book: PhraseBook, kind: str, tool: Tool, tools: list[Schema], rng: random.Random) -> Dialogue:
    slots = _slots(book, rng)
    asked = rough(fill(expand(rng.choice(book.user(kind)), rng), slots), rng)
    # `rough` may write small letters; arguments are what the user wrote.
    arguments = {key: _as_written(value, asked) for key, value in tool.call(slots).items()}
    messages = [*_before(book, rng), user(asked), _call(tool.name, arguments)]
    thinking = rng.random() < 0.6
    if rng.random() < 0.25:
        messages += _answered(book, kind, slots, f"functions.{tool.name}:0", rng)
        return Dialogue("tool answer", book.code, messages, asked, kind, thinking, tools)
    expected = {"name": tool.name, "arguments": arguments}
    return Dialogue("tool call", book.code, messages, f"{asked} {tool.name}", expected, thinking, tools)


def _without_call(book: PhraseBook, tools: list[Schema], rng: random.Random) -> Dialogue:
    intent = pick_intent(rng)
    if intent == "no_tool":
        tools = [other(rng)]
    asked = question(book, intent, rng)
    answer = assistant(expand(rng.choice(book.answer(intent)), rng), thought(book, intent))
    tools = tools or [other(rng)]
    return Dialogue("talk", book.code, [user(asked), answer], asked, intent, rng.random() < 0.6, tools)


def _beside(kind: str, rng: random.Random) -> list[Schema]:
    """Up to two more tools of other kinds."""
    kinds = rng.sample([k for k in FAMILIES if k != kind], rng.choice((0, 0, 1, 1, 2)))
    return [other(rng) if rng.random() < 0.3 else draw(FAMILIES[k], rng).schema for k in kinds]


def _before(book: PhraseBook, rng: random.Random) -> list[Message]:
    if rng.random() < 0.85:
        return []
    return [user(question(book, "hello", rng)), assistant(expand(rng.choice(book.answer("hello")), rng))]


def _call(name: str, arguments: dict[str, Any]) -> Message:
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    call = {"id": f"functions.{name}:0", "type": "function", "function": function}
    return {**assistant("", f"I can use the tool {name} for this."), "tool_calls": [call]}


def _answered(book: PhraseBook, kind: str, slots: dict[str, Any], call_id: str, rng: random.Random) -> list[Message]:
    name_of = {"weather": ("condition", "n"), "time": ("clock",), "currency": ("m",), "reminder": (), "search": ("n",)}
    told = slots | {"n": slots["n"] if kind == "currency" else rng.randint(1, 35), "m": rng.randint(10, 9999)}
    told["clock"] = slots["clock"] if kind == "reminder" else clock(rng)
    told["condition"] = rng.choice(book.words("weather.condition"))
    labels = {
        "condition": "condition",
        "n": "temperature" if kind == "weather" else "count",
        "clock": "time",
        "m": "result",
    }
    result = {labels[slot]: told[slot] for slot in name_of[kind]} or {"ok": True}
    returned = json.dumps(result, ensure_ascii=False)
    answer = fill(expand(rng.choice(book.answer(kind)), rng), told)
    tool_turn = {"role": "tool", "tool_call_id": call_id, "content": returned}
    return [tool_turn, assistant(answer, f"The tool has answered. I tell the user in {book.language}.")]


def _slots(book: PhraseBook, rng: random.Random) -> dict[str, Any]:
    source, target = rng.sample(CURRENCIES, 2)
    return {
        "city": pick(book, "cities", rng),
        "topic": invented(book, rng) if rng.random() < 0.3 else rng.choice(book.words("topics")),
        "task": rng.choice(book.words("reminder.task")),
        "clock": clock(rng),
        "n": rng.randint(2, 99) * rng.choice((1, 1, 10)),
        "from": source,
        "to": target,
    }


def _as_written(value: Any, asked: str) -> Any:
    if isinstance(value, str) and value not in asked and value.lower() in asked:
        return value.lower()
    return value
