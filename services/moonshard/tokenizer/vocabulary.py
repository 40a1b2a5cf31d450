"""Text to token ids and back, whole and as a stream.

Source: kimi-k2.5.md section 5.1. Knows nothing of chat: that is template.py.
"""

import codecs
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from moonshard.errors import CheckpointError, RequestError
from moonshard.tokenizer.files import TokenizerParts, read_tiktoken, read_tokenizer_json

# tiktoken's cost grows faster than the text, and a very long run overflows its stack.
PIECE_CHARACTERS = 400_000
RUN_CHARACTERS = 25_000

_RUNS = re.compile(r"\s+|\S+")


class StreamDecoder:
    """Decodes ids as they come. Holds back the bytes of an unfinished character."""

    def __init__(self, bytes_of: dict[int, bytes]) -> None:
        self._bytes_of = bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Sequence[int]) -> str:
        """The text that is complete now. Raises RequestError for an id outside the vocabulary."""
        return self._utf8.decode(_join(self._bytes_of, ids))

    def finish(self) -> str:
        """What was held back, with a replacement character for a broken end."""
        return self._utf8.decode(b"", final=True)


class Tokenizer:
    """A checkpoint's vocabulary."""

    def __init__(self, parts: TokenizerParts) -> None:
        self._parts = parts
        self.vocab_size = max(parts.bytes_of) + 1

    def encode(self, text: str, allow_special: bool) -> list[int]:
        """Ids of a text; no BOS. Spellings of special tokens become those tokens only if `allow_special`."""
        encode = self._parts.marked if allow_special else self._parts.plain
        return [number for piece in _pieces(text) for number in encode(piece)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens spelled out, broken UTF-8 replaced. Raises RequestError for an unknown id."""
        return _join(self._parts.bytes_of, ids).decode("utf-8", errors="replace")

    def stream(self) -> StreamDecoder:
        """A decoder for one growing sequence of ids."""
        return StreamDecoder(self._parts.bytes_of)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of all special tokens, reserved ones included."""
        return tuple(sorted(self._parts.special_ids.values()))

    @property
    def special_tokens(self) -> dict[str, int]:
        """Id of every special token by its spelling."""
        return dict(self._parts.special_ids)

    def token_bytes(self, vocab_size: int) -> list[bytes]:
        """What each id below vocab_size spells, nothing for ids that no text uses."""
        return [self._parts.bytes_of.get(number, b"") for number in range(vocab_size)]

    def special(self, name: str) -> int | None:
        """Id of a special token such as `<|im_end|>`, or None."""
        return self._parts.special_ids.get(name)


def load_tokenizer(checkpoint_dir: Path) -> Tokenizer:
    """From tiktoken.model + tokenizer_config.json, else tokenizer.json. Raises CheckpointError naming the file."""
    tiktoken_model, tokenizer_json = checkpoint_dir / "tiktoken.model", checkpoint_dir / "tokenizer.json"
    if tiktoken_model.is_file():
        return Tokenizer(read_tiktoken(tiktoken_model, checkpoint_dir / "tokenizer_config.json"))
    if tokenizer_json.is_file():
        return Tokenizer(read_tokenizer_json(tokenizer_json))
    raise CheckpointError(f"{checkpoint_dir}: expected tiktoken.model or tokenizer.json, found neither")


def _join(bytes_of: dict[int, bytes], ids: Sequence[int]) -> bytes:
    try:
        return b"".join([bytes_of[number] for number in ids])
    except KeyError as error:
        raise RequestError(
            "token_ids", f"{error.args[0]} is not a token; the vocabulary ends at {max(bytes_of)}"
        ) from None


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), PIECE_CHARACTERS):
        yield from _cut_long_runs(text[start : start + PIECE_CHARACTERS])


def _cut_long_runs(text: str) -> Iterator[str]:
    """Cuts so that no run of only spaces or only non-spaces exceeds RUN_CHARACTERS."""
    start = 0
    for run in _RUNS.finditer(text):
        for cut in range(run.start() + RUN_CHARACTERS, run.end(), RUN_CHARACTERS):
            yield text[start:cut]
            start = cut
    yield text[start:]
