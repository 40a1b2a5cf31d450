"""Trains the demo tokenizer: a byte-level BPE over `corpus.txt`, written beside it as `tiktoken.model`.

Run `python -m moonshard_cluster.demo.train_tokenizer` after changing the corpus; the result is committed.
The text is small, so the plain algorithm will do: count all pairs, join the commonest, begin again.
"""

import base64
import itertools
from collections import Counter
from pathlib import Path

import regex  # type: ignore[import-untyped]

from moonshard.tokenizer.files import SPLIT_PATTERN
from moonshard_cluster.demo.vocabulary import NUM_TRAINED, TRAINED_MODEL

CORPUS = Path(__file__).parent / "corpus.txt"

Word = tuple[bytes, ...]


def train(text: str, num_tokens: int) -> list[bytes]:
    """The 256 bytes and then the merges, in rank order. Ties go to the smallest pair, so a text gives one result."""
    words = Counter(_split(text))
    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < num_tokens:
        pair = _commonest_pair(words)
        if pair[0] + pair[1] not in tokens:
            tokens.append(pair[0] + pair[1])
        words = _joined(words, pair)
    return tokens


def to_tiktoken(tokens: list[bytes]) -> bytes:
    """One line per token: base64, blank, rank."""
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def _split(text: str) -> list[Word]:
    pieces = regex.findall(SPLIT_PATTERN, text, flags=regex.VERSION1)
    return [tuple(bytes([byte]) for byte in piece.encode()) for piece in pieces]


def _commonest_pair(words: Counter[Word]) -> tuple[bytes, bytes]:
    counts: Counter[tuple[bytes, bytes]] = Counter()
    for word, count in words.items():
        for pair in itertools.pairwise(word):
            counts[pair] += count
    return min(counts, key=lambda pair: (-counts[pair], pair))


def _joined(words: Counter[Word], pair: tuple[bytes, bytes]) -> Counter[Word]:
    joined: Counter[Word] = Counter()
    for word, count in words.items():
        joined[_join_pair(word, pair)] += count
    return joined


def _join_pair(word: Word, pair: tuple[bytes, bytes]) -> Word:
    if pair[0] not in word:
        return word
    parts: list[bytes] = []
    place = 0
    while place < len(word):
        if word[place : place + 2] == pair:
            parts.append(pair[0] + pair[1])
            place += 2
        else:
            parts.append(word[place])
            place += 1
    return tuple(parts)


def main() -> None:
    """Train and write."""
    TRAINED_MODEL.write_bytes(to_tiktoken(train(CORPUS.read_text(encoding="utf-8"), NUM_TRAINED)))


if __name__ == "__main__":
    main()
