"""Values for slots: from the phrase books, and now and then a word that nobody has seen, so that copying is learnt."""

import random

from moonshard.training.data.phrases import PhraseBook

_SYLLABLES = {
    "latin": "ka lo mi ren tu ba sel dor vi na gor pe zu ha fin wes jo cal",
    "ru": "ка ло ми рен ту ба сел дор ви на гор пе зу ха фин",  # noqa: RUF001
    "zh": " ".join("山水东西南北海江河林石安平和新金云天明文永长春秋"),
}
UNSEEN = 0.2
CURRENCIES = ["EUR", "USD", "GBP", "JPY", "CHF", "CNY", "BRL", "RUB", "IDR", "CAD", "AUD", "INR"]


def invented(book: PhraseBook, rng: random.Random) -> str:
    """A made-up name in the language's script."""
    syllables = _SYLLABLES.get(book.code, _SYLLABLES["latin"]).split()
    word = "".join(rng.choice(syllables) for _ in range(rng.randint(2, 3)))
    return word.capitalize()


def pick(book: PhraseBook, kind: str, rng: random.Random) -> str:
    """A word of the book's list, or an invented one."""
    return invented(book, rng) if rng.random() < UNSEEN else rng.choice(book.words(kind))


def clock(rng: random.Random) -> str:
    return f"{rng.randint(0, 23)}:{rng.randrange(0, 60, 5):02}"
