"""Values for slots: from the phrase books, and now and then a word that nobody has seen, so that copying is learnt."""

import random

from moonshard.training.data.phrases import PhraseBook

# Beginnings and ends of syllables: a few hundred of them, so that a name has to be copied letter by letter.
_SYLLABLES = {
    "latin": (
        "b c ch d f g h j k l m n p r s sh t v w z br dr kr st tr",
        "a e i o u ai ou an en in on ar er or al el as is us",
    ),
    "ru": ("б в г д ж з к л м н п р с т ф х ш бр кр ст тр", "а е и о у ай ан ен ин он ар ер ор ал ел ас ис ус"),  # noqa: RUF001
    "zh": (" ".join("山水东西南北海江河林石安平和新金云天明文永长春秋清白高大小中上下风花雪月星光华宁"), ""),
}
UNSEEN = 0.4
CURRENCIES = ["EUR", "USD", "GBP", "JPY", "CHF", "CNY", "BRL", "RUB", "IDR", "CAD", "AUD", "INR"]


def invented(book: PhraseBook, rng: random.Random) -> str:
    """A made-up name in the language's script."""
    starts, ends = (text.split() for text in _SYLLABLES.get(book.code, _SYLLABLES["latin"]))
    word = "".join(rng.choice(starts) + rng.choice(ends or [""]) for _ in range(rng.randint(2, 3)))
    return word.capitalize()


def pick(book: PhraseBook, kind: str, rng: random.Random) -> str:
    """A word of the book's list, or an invented one."""
    return invented(book, rng) if rng.random() < UNSEEN else rng.choice(book.words(kind))


def clock(rng: random.Random) -> str:
    return f"{rng.randint(0, 23)}:{rng.randrange(0, 60, 5):02}"
