"""Reads a checkpoint's tokenizer files into the parts of which a Tokenizer is made.

Two forms: `tiktoken.model` + `tokenizer_config.json` (K2, K2.5), and a byte-level `tokenizer.json` (DeepSeek-V3).
Knows nothing of streams or templates. Source: kimi-k2.5.md section 5.1.
"""

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiktoken
from tokenizers import Tokenizer as JsonTokenizer

from moonshard.errors import CheckpointError

NUM_SPECIAL = 256

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_CONTRACTION = r"(?i:'(?:s|t|re|ve|m|ll|d))?"

# Alternatives in the order in which they are tried.
SPLIT_PATTERN = "|".join(
    (
        r"\p{Han}+",
        f"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}",
        f"{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


@dataclass(frozen=True)
class TokenizerParts:
    """What both forms boil down to. `plain` sees no special tokens, `marked` sees all of them."""

    plain: Callable[[str], list[int]]
    marked: Callable[[str], list[int]]
    bytes_of: dict[int, bytes]
    special_ids: dict[str, int]


def read_tiktoken(model: Path, config: Path) -> TokenizerParts:
    """The published form: merge ranks in one file, names of the special tokens in the other."""
    ranks = _read_ranks(model)
    special_ids = _name_specials(len(ranks), config)
    encoding = tiktoken.Encoding(
        model.parent.name, pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special_ids
    )
    bytes_of = {rank: piece for piece, rank in ranks.items()}
    bytes_of |= {number: name.encode() for name, number in special_ids.items()}
    return TokenizerParts(
        plain=encoding.encode_ordinary,
        marked=lambda text: encoding.encode(text, allowed_special="all"),
        bytes_of=bytes_of,
        special_ids=special_ids,
    )


def read_tokenizer_json(path: Path) -> TokenizerParts:
    """A byte-level tokenizer of the `tokenizers` library; other kinds are refused."""
    described = read_json(path)
    if "ByteLevel" not in json.dumps(described.get("decoder")):
        raise CheckpointError(f"{path}: expected a ByteLevel decoder, found {described.get('decoder')!r}")
    marked = _build_json(path, described)
    plain = _build_json(path, described | {"added_tokens": []})
    special_ids = {token["content"]: token["id"] for token in described.get("added_tokens", [])}
    bytes_of = {number: _byte_level(piece) for piece, number in marked.get_vocab(with_added_tokens=False).items()}
    bytes_of |= {number: name.encode() for name, number in special_ids.items()}
    return TokenizerParts(
        plain=lambda text: plain.encode(text, add_special_tokens=False).ids,
        marked=lambda text: marked.encode(text, add_special_tokens=False).ids,
        bytes_of=bytes_of,
        special_ids=special_ids,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint, or CheckpointError naming the file."""
    try:
        value = json.loads(read_bytes(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_bytes(path: Path) -> bytes:
    """A whole file of the checkpoint, or CheckpointError naming it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        if line:
            piece, rank = _read_rank(path, number, line)
            if rank != len(ranks) or piece in ranks:
                raise CheckpointError(
                    f"{path}: line {number}: expected a new token of rank {len(ranks)}, found {line!r}"
                )
            ranks[piece] = rank
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise CheckpointError(f"{path}: expected all 256 single bytes, found {256 - len(missing)}")
    return ranks


def _read_rank(path: Path, number: int, line: bytes) -> tuple[bytes, int]:
    try:
        piece, rank = line.split()
        return base64.b64decode(piece, validate=True), int(rank)
    except (ValueError, binascii.Error):
        raise CheckpointError(f"{path}: line {number}: expected base64 and a rank, found {line[:80]!r}") from None


def _name_specials(base: int, config: Path) -> dict[str, int]:
    names = {number: f"<|reserved_token_{number}|>" for number in range(base, base + NUM_SPECIAL)}
    for key, token in _added_tokens(config).items():
        number = _special_id(config, key)
        if number not in names:
            expected = f"{base}..{base + NUM_SPECIAL - 1}"
            raise CheckpointError(f"{config}: added_tokens_decoder: expected ids in {expected}, found {key}")
        names[number] = _special_name(config, key, token)
    special_ids = {name: number for number, name in names.items()}
    if len(special_ids) != NUM_SPECIAL:
        raise CheckpointError(f"{config}: added_tokens_decoder: a name is given to two ids")
    return special_ids


def _added_tokens(config: Path) -> dict[str, Any]:
    tokens = read_json(config).get("added_tokens_decoder", {})
    if not isinstance(tokens, dict):
        raise CheckpointError(f"{config}: added_tokens_decoder: expected an object, found {type(tokens).__name__}")
    return tokens


def _special_id(config: Path, key: str) -> int:
    if not key.isdecimal():
        raise CheckpointError(f"{config}: added_tokens_decoder: expected numbers as keys, found {key!r}")
    return int(key)


def _special_name(config: Path, key: str, token: Any) -> str:
    name = token.get("content") if isinstance(token, dict) else None
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"{config}: added_tokens_decoder.{key}: expected a content text, found {token!r}")
    return name


def _build_json(path: Path, described: dict[str, Any]) -> JsonTokenizer:
    try:
        return JsonTokenizer.from_str(json.dumps(described))
    except Exception as error:  # noqa: BLE001 - the library raises the bare class
        raise CheckpointError(f"{path}: {error}") from None


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins of GPT-2's byte-level alphabet: visible Latin-1 keeps its place, the rest move up."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()


def _byte_level(piece: str) -> bytes:
    if all(character in _BYTE_OF for character in piece):
        return bytes(_BYTE_OF[character] for character in piece)
    return piece.encode()
