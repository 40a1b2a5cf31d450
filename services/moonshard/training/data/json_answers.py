"""Facts to be put into a JSON object with given keys."""

import json
import random

from moonshard.training.data.dialogue import Dialogue, assistant, user
from moonshard.training.data.phrases import PhraseBook, expand, fill
from moonshard.training.data.words import pick

KEYS = ("name", "age", "city", "count")


def json_answer(book: PhraseBook, rng: random.Random) -> Dialogue:
    keys = rng.sample(KEYS, rng.randint(1, 3))
    wanted: dict[str, object] = {key: _value(book, key, rng) for key in keys}
    facts = ", ".join(fill(expand(book.entries["json"][key], rng), _slot(wanted, key)) for key in keys)
    asked = fill(expand(rng.choice(book.user("json")), rng), {"keys": ", ".join(keys), "facts": facts})
    thought = f"The user wants JSON with {', '.join(keys)}."
    answer = json.dumps(wanted, ensure_ascii=False)
    return Dialogue("json", book.code, [user(asked), assistant(answer, thought)], asked, wanted, rng.random() < 0.6)


def _value(book: PhraseBook, key: str, rng: random.Random) -> object:
    if key == "name":
        return pick(book, "names", rng)
    return pick(book, "cities", rng) if key == "city" else rng.randint(1, 99)


def _slot(wanted: dict[str, object], key: str) -> dict[str, object]:
    return {"n" if key in ("age", "count") else key: wanted[key]}
