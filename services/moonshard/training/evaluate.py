"""Held-out questions put to a checkpoint, greedily and without constraints: how many it answers right."""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from moonshard.model.reference import Reference
from moonshard.tokenizer import load_tokenizer
from moonshard.training.batches import make_batch
from moonshard.training.data.corpus import sample
from moonshard.training.data.dialogue import Dialogue
from moonshard.training.data.phrases import fresh_book, phrase_book
from moonshard.training.generate import answers
from moonshard.training.model import packed_loss
from moonshard.training.scores import is_closed, is_right, is_valid_call
from moonshard.training.tokens import load_encoder

_BATCH, _MAX_TOKENS = 32, 160


@dataclass(frozen=True, slots=True)
class Answered:
    dialogue: Dialogue
    text: str


def ask(
    path: Path, num_dialogues: int, seed: int, told: Callable[[int, int], None], fresh: bool = False
) -> list[Answered]:
    """Held-out dialogues of a seed with the checkpoint's answers. `told` hears (done, of how many).

    fresh: in wordings that training has never seen; else single questions in wordings that it knows.
    """
    reference = Reference.load(path)
    encoder, tokenizer = load_encoder(path), load_tokenizer(path)
    rng = random.Random(f"evaluate {seed}")
    book = fresh_book if fresh else phrase_book
    dialogues = [sample(rng, held_out=True, book=book) for _ in range(num_dialogues)]
    prompts = [encoder.prompt(dialogue, rng) for dialogue in dialogues]
    found: list[Answered] = []
    for start in range(0, num_dialogues, _BATCH):
        part = slice(start, start + _BATCH)
        tokens = answers(reference.decoder, prompts[part], _MAX_TOKENS, reference.config.eos_token_ids)
        texts = map(tokenizer.decode, tokens)
        found += map(Answered, dialogues[part], texts)
        told(len(found), num_dialogues)
    return found


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many."""

    good: int
    asked: int

    @classmethod
    def of(cls, verdicts: list[bool]) -> "Share":
        return cls(sum(verdicts), len(verdicts))

    def __str__(self) -> str:
        return f"{self.good / self.asked:.1%} ({self.good} of {self.asked})" if self.asked else "not asked"


def summarise(found: list[Answered]) -> Iterator[tuple[str, Share]]:
    """(what, share): validity of calls, arithmetic with reasoning, closed reasoning, then every task and language."""
    calls = [a for a in found if a.dialogue.task == "tool call"]
    sums = [a for a in found if a.dialogue.task in ("plus", "minus") and a.dialogue.thinking]
    yield "valid tool calls", Share.of([is_valid_call(a.dialogue, a.text) for a in calls])
    yield "sums and differences, thinking", Share.of([is_right(a.dialogue, a.text) for a in sums])
    yield "reasoning closed", Share.of([is_closed(a.dialogue, a.text) for a in found])
    groups: dict[str, list[bool]] = defaultdict(list)
    for answered in found:
        right = is_right(answered.dialogue, answered.text)
        groups[f"right: {answered.dialogue.task}"].append(right)
        groups[f"right: in {answered.dialogue.language}"].append(right)
    for name in sorted(groups):
        yield name, Share.of(groups[name])


@torch.inference_mode()
def perplexity(path: Path, num_batches: int, rows: int, length: int, seed: int) -> float:
    """Of held-out dialogues, under the weights of training."""
    decoder, encoder = Reference.load(path).decoder, load_encoder(path)
    batches = (make_batch(encoder, rows, length, seed, number, held_out=True) for number in range(num_batches))
    losses = [float(packed_loss(decoder, batch)[0]) for batch in batches]
    return math.exp(sum(losses) / len(losses))


def wrong(found: list[Answered]) -> list[Answered]:
    return [answered for answered in found if not is_right(answered.dialogue, answered.text)]
