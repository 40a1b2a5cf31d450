"""Packs dialogues into rows: the n-th batch of a seed is always the same, so a resumed run goes on where it stopped."""

import random
from collections.abc import Iterator

import torch

from moonshard.training.data.corpus import Encoded, Encoder, sample
from moonshard.training.model import Batch

# Dialogues looked through for one that fills a row's end.
_WAITING = 24


def make_batch(encoder: Encoder, rows: int, length: int, seed: int, number: int, held_out: bool = False) -> Batch:
    """`rows` rows of `length` tokens. Dialogues longer than a row are left out."""
    rng = random.Random(f"{seed}/{number}/{held_out}")
    source = _encoded(encoder, length, rng, held_out)
    waiting = [next(source) for _ in range(_WAITING)]
    return _stack([_fill_row(waiting, source, length) for _ in range(rows)], length)


def _encoded(encoder: Encoder, length: int, rng: random.Random, held_out: bool) -> Iterator[Encoded]:
    while True:
        encoded = encoder.encode(sample(rng, held_out), rng)
        if len(encoded.tokens) <= length:
            yield encoded


def _fill_row(waiting: list[Encoded], source: Iterator[Encoded], length: int) -> list[Encoded]:
    """The first that waits, then whatever still fits."""
    row, room = [], length
    while fitting := [place for place, encoded in enumerate(waiting) if len(encoded.tokens) <= room]:
        row.append(waiting.pop(fitting[0]))
        room -= len(row[-1].tokens)
        waiting.append(next(source))
    return row


def _stack(rows: list[list[Encoded]], length: int) -> Batch:
    shape = (len(rows), length)
    tokens, documents, positions = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    weights = torch.zeros(shape)
    for index, row in enumerate(rows):
        start = 0
        for number, encoded in enumerate(row, start=1):
            end = start + len(encoded.tokens)
            tokens[index, start:end] = torch.tensor(encoded.tokens)
            weights[index, start:end] = torch.tensor(encoded.weights)
            documents[index, start:end] = number
            positions[index, start:end] = torch.arange(end - start)
            start = end
    return Batch(tokens, documents, positions, weights)
