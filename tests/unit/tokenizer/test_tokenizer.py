"""Text to ids and back: the published vectors, streams, and broken files."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as JsonTokenizer
from tokenizers import decoders, models, pre_tokenizers

from moonshard.errors import CheckpointError, RequestError
from moonshard.tokenizer import Tokenizer, load_tokenizer
from moonshard.tokenizer import vocabulary as tokenizer_module
from moonshard.tokenizer.spellings import spelling_pattern

# Two-byte merges on top of the single bytes; 256 + 3 tokens, so [BOS] is 259.
MERGES = [b"ab", b"\xc3\xa9", b" t"]
NAMES = {"259": "[BOS]", "261": "<|im_end|>", "265": "<think>"}


def write_tiktoken(folder: Path) -> Path:
    tokens = [bytes([byte]) for byte in range(256)] + MERGES
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    (folder / "tiktoken.model").write_bytes(b"\n".join(lines))
    added = {key: {"content": name} for key, name in NAMES.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    return folder


def write_tokenizer_json(folder: Path) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)} | {"ab": 256}
    tokenizer = JsonTokenizer(models.BPE(vocabulary, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tiktoken(tmp_path_factory.mktemp("tiktoken")))


@pytest.fixture(scope="module")
def from_json(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tokenizer_json(tmp_path_factory.mktemp("json")))


@pytest.fixture(scope="module")
def published(shared_data: Path) -> Tokenizer:
    return load_tokenizer(shared_data / "kimi-k2.5")


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, world!", [19180, 11, 2695, 0]),
        ("你好，世界", [33845, 378, 2243]),  # noqa: RUF001
        ("1234567", [6694, 12972, 22]),
        ("I'm don't WE'LL", [17172, 4536, 40893, 6, 5847]),
        ("a中b", [64, 435, 65]),
        ("🚀 Rust is awesome! 🦀", [5885, 40101, 45192, 387, 14279, 0, 17137, 99, 222]),
        (
            "The quick brown fox jumps over the lazy dog",
            [1008, 5072, 16331, 69275, 60062, 1312, 276, 29292, 7751],
        ),
    ],
)
def test_published_vectors(published: Tokenizer, text: str, ids: list[int]) -> None:
    assert published.encode(text, allow_special=False) == ids
    assert published.encode(text, allow_special=True) == ids
    assert published.decode(ids) == text


def test_published_special_tokens(published: Tokenizer) -> None:
    assert published.vocab_size == 163840
    assert published.special("<|im_end|>") == 163586
    assert published.special("</think>") == 163607
    assert published.special("<|reserved_token_163589|>") == 163589
    assert published.special("[PAD]") == 163839


def test_special_tokens_only_where_allowed(small: Tokenizer) -> None:
    assert small.encode("a<|im_end|>", allow_special=True) == [97, 261]
    assert small.encode("a<|im_end|>", allow_special=False) == [97, *b"<|im_end|>"]
    assert small.encode("<|reserved_token_260|>", allow_special=True) == [260]
    assert small.decode([261, 256, 260]) == "<|im_end|>ab<|reserved_token_260|>"


def test_sizes_and_names(small: Tokenizer) -> None:
    assert small.vocab_size == 259 + 256
    assert small.special("<think>") == 265
    assert small.special("<nothing>") is None
    assert small.encode("", allow_special=True) == []
    assert small.decode([]) == ""


def test_tokenizer_json(from_json: Tokenizer) -> None:
    assert from_json.vocab_size == 258
    assert from_json.special("<|im_end|>") == 257
    assert from_json.encode("ab<|im_end|>", allow_special=True) == [256, 257]
    plain = from_json.encode("ab<|im_end|>é", allow_special=False)
    assert 257 not in plain
    assert from_json.decode(plain) == "ab<|im_end|>é"


def test_the_rank_file_wins_over_tokenizer_json(tmp_path: Path) -> None:
    write_tokenizer_json(write_tiktoken(tmp_path))
    assert load_tokenizer(tmp_path).vocab_size == 515


def test_long_runs_are_cut(small: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "RUN_CHARACTERS", 3)
    # abababa is cut to aba bab a: the merge never crosses a cut.
    assert small.encode("abababa", allow_special=False) == [256, 97, 98, 256, 97]
    assert small.encode("ab t ab", allow_special=False) == [256, 258, 32, 256]


def test_long_texts_are_cut(small: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", 3)
    assert small.encode("cabcab", allow_special=False) == [99, 256, 99, 256]
    assert small.encode("abacab", allow_special=False) == [256, 97, 99, 256]
    assert small.encode("ccab", allow_special=False) == [99, 99, 97, 98]


@pytest.mark.parametrize("text", ["x" * 1_000_000, " " * 1_000_000, "\n" * 1_000_000, "中" * 500_000])
def test_very_long_texts_come_back(published: Tokenizer, text: str) -> None:
    assert published.decode(published.encode(text, allow_special=False)) == text


@settings(deadline=None)
@given(text=st.text(), allow_special=st.booleans())
def test_decode_undoes_encode(small: Tokenizer, from_json: Tokenizer, text: str, allow_special: bool) -> None:
    for tokenizer in (small, from_json):
        assert tokenizer.decode(tokenizer.encode(text, allow_special)) == text


@settings(deadline=None)
@given(pieces=st.lists(st.lists(st.integers(0, 257), max_size=6)))
def test_a_stream_gives_the_same_text(small: Tokenizer, from_json: Tokenizer, pieces: list[list[int]]) -> None:
    ids = [number for piece in pieces for number in piece]
    for tokenizer in (small, from_json):
        stream = tokenizer.stream()
        assert "".join([stream.push(piece) for piece in pieces] + [stream.finish()]) == tokenizer.decode(ids)


@settings(deadline=None)
@given(text=st.text(min_size=1))
def test_a_stream_never_emits_half_a_character(small: Tokenizer, text: str) -> None:
    stream, emitted = small.stream(), ""
    for byte in text.encode():
        emitted += stream.push([byte])
        assert text.startswith(emitted)
    assert emitted == text
    assert stream.finish() == ""


def test_a_broken_end_is_replaced(small: Tokenizer) -> None:
    stream = small.stream()
    assert stream.push([97, 0xF0, 0x9F]) == "a"
    assert stream.finish() == "\ufffd" == small.decode([0xF0, 0x9F])


@pytest.mark.parametrize("number", [-1, 515, 2**40])
def test_unknown_ids_are_refused(small: Tokenizer, number: int) -> None:
    with pytest.raises(RequestError, match=f"token_ids: {number} is not a token; the vocabulary ends at 514"):
        small.decode([97, number])
    with pytest.raises(RequestError, match="token_ids"):
        small.stream().push([number])


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def replace(name: str, old: bytes, new: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("tiktoken.model"), "expected tiktoken.model or tokenizer.json, found neither"),
        (remove("tokenizer_config.json"), "tokenizer_config.json: cannot be read: No such file"),
        (write("tokenizer_config.json", b"{"), "tokenizer_config.json: not JSON"),
        (write("tokenizer_config.json", b"\xff"), "tokenizer_config.json: not JSON"),
        (write("tokenizer_config.json", b"[]"), "tokenizer_config.json: expected a JSON object, found list"),
        (
            write("tokenizer_config.json", b'{"added_tokens_decoder": []}'),
            "added_tokens_decoder: expected an object, found list",
        ),
        (replace("tokenizer_config.json", b'"261"', b'"900"'), r"expected ids in 259..514, found 900"),
        (replace("tokenizer_config.json", b'"261"', b'"x"'), "expected numbers as keys, found 'x'"),
        (replace("tokenizer_config.json", b"<think>", b"[BOS]"), "a name is given to two ids"),
        (replace("tokenizer_config.json", b"content", b"text"), "added_tokens_decoder.259: expected a content text"),
        (write("tiktoken.model", b"YQ== 0\n???? 1\n"), "tiktoken.model: line 2: expected base64 and a rank"),
        (write("tiktoken.model", b"YQ== 0\nYg==\n"), "tiktoken.model: line 2: expected base64 and a rank"),
        (write("tiktoken.model", b"YQ== 0\nYg== 5\n"), "tiktoken.model: line 2: expected a new token of rank 1"),
        (write("tiktoken.model", b"YQ== 0\nYQ== 1\n"), "tiktoken.model: line 2: expected a new token of rank 1"),
        (write("tiktoken.model", b"YQ== 0\n"), "tiktoken.model: expected all 256 single bytes, found 1"),
        (write("tiktoken.model", b""), "tiktoken.model: expected all 256 single bytes, found 0"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(write_tiktoken(tmp_path))
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (write("tokenizer.json", b"{}"), "expected a ByteLevel decoder, found None"),
        (write("tokenizer.json", b'{"decoder": {"type": "ByteLevel"}}'), "tokenizer.json: "),
        (replace("tokenizer.json", b'"ByteLevel"', b'"Metaspace"'), "expected a ByteLevel decoder"),
    ],
)
def test_other_tokenizer_json_is_refused(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(write_tokenizer_json(tmp_path))
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(tmp_path)


def test_spellings_are_found_whole_and_longest_first() -> None:
    pattern = spelling_pattern(["<|a|>", "<|a|>b", "<", "[x]", "<|", "(.*)"])
    found = [match[0] for match in pattern.finditer("<|a|>b <|a|> <|a <b [x] [y] (.*) (..)")]
    assert found == ["<|a|>b", "<|a|>", "<|", "<", "[x]", "(.*)"]
    assert spelling_pattern([]).search("anything") is None
