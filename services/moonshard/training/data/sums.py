"""Arithmetic with its steps in the reasoning: sums, differences, and which of two numbers is larger."""

import random

from moonshard.training.data.dialogue import Dialogue, assistant, user
from moonshard.training.data.phrases import PhraseBook, expand, fill
from moonshard.training.data.talk import rough
from moonshard.training.data.words import pick

_INSTANT = 0.08


def arithmetic(book: PhraseBook, rng: random.Random) -> Dialogue:
    """A sum or a difference of two numbers below a hundred."""
    a, b = (rng.randint(10, 99) if rng.random() < 0.85 else rng.randint(0, 9) for _ in range(2))
    task = rng.choice(("plus", "minus"))
    c = a + b if task == "plus" else a - b
    steps = add_steps(a, b) if task == "plus" else subtract_steps(a, b)
    slots = {"a": a, "b": b, "c": c, "name": pick(book, "names", rng)}
    asked = rough(fill(expand(rng.choice(book.user(task)), rng), slots), rng)
    answer = fill(expand(rng.choice(book.answer(task)), rng), slots)
    messages = [user(asked), assistant(answer, steps)]
    return Dialogue(task, book.code, messages, f"{a} {task} {b}", c, thinking=rng.random() >= _INSTANT)


def add_steps(a: int, b: int) -> str:
    units = a % 10 + b % 10
    carry = units // 10
    tens = f"{a // 10}+{b // 10}+{carry}={a // 10 + b // 10 + carry}"
    return f"{a}+{b}: {a % 10}+{b % 10}={units}, write {units % 10}, carry {carry}. {tens}. Result {a + b}."


def subtract_steps(a: int, b: int) -> str:
    if a < b:
        return f"{a}-{b}: {a}<{b}, so less than 0. {_difference(b, a)} Result -{b - a}."
    return f"{a}-{b}: {a}>={b}. {_difference(a, b)} Result {a - b}."


def _difference(a: int, b: int) -> str:
    borrow = int(a % 10 < b % 10)
    upper = a % 10 + 10 * borrow
    tens = f"{a // 10}-{borrow}-{b // 10}={a // 10 - borrow - b // 10}"
    return f"{upper}-{b % 10}={upper - b % 10}, borrow {borrow}. {tens}."


def compare(book: PhraseBook, rng: random.Random) -> Dialogue:
    """Which of two decimal numbers is larger; often they differ after the point only."""
    a, b = _two_decimals(rng)
    larger, smaller = (a, b) if float(a) > float(b) else (b, a)
    slots = {"a": a, "b": b, "c": larger, "d": smaller}
    asked = rough(fill(expand(rng.choice(book.user("compare")), rng), slots), rng)
    answer = fill(expand(rng.choice(book.answer("compare")), rng), slots)
    return Dialogue("compare", book.code, [user(asked), assistant(answer, compare_steps(a, b))], f"{a} ? {b}", larger)


def _two_decimals(rng: random.Random) -> tuple[str, str]:
    while True:
        whole = rng.randint(1, 20)
        a = f"{whole}.{rng.randint(1, 9)}"
        b = f"{whole if rng.random() < 0.8 else rng.randint(1, 20)}.{rng.randint(1, 9)}{rng.randint(1, 9)}"
        if float(a) != float(b):
            return (a, b) if rng.random() < 0.5 else (b, a)


def compare_steps(a: str, b: str) -> str:
    larger = a if float(a) > float(b) else b
    (whole_a, part_a), (whole_b, part_b) = a.split("."), b.split(".")
    if whole_a != whole_b:
        return f"{a} and {b}: {_order(int(whole_a), int(whole_b))}. So {larger}."
    places = [(int(x), int(y)) for x, y in zip(part_a.ljust(2, "0"), part_b.ljust(2, "0"), strict=True)]
    steps = [f"{whole_a}={whole_b}", _order(*places[0])]
    if places[0][0] == places[0][1]:
        steps.append(_order(*places[1]))
    return f"{a} and {b}: {', '.join(steps)}. So {larger}."


def _order(x: int, y: int) -> str:
    return f"{x}{'<' if x < y else '>' if x > y else '='}{y}"
