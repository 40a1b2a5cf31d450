"""The demo's tokenizer: K2.5's special tokens at K2.5's offsets, any vocabulary size, trained from our own text."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshard.tokenizer import Tokenizer, load_tokenizer
from moonshard_cluster.demo.train_tokenizer import CORPUS, to_tiktoken, train
from moonshard_cluster.demo.vocabulary import NUM_TRAINED, TRAINED_MODEL, tokenizer_config, write_vocabulary


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Tokenizer:
    return load_tokenizer(tiny)


def test_the_committed_model_is_what_training_gives() -> None:
    assert to_tiktoken(train(CORPUS.read_text(encoding="utf-8"), NUM_TRAINED)) == TRAINED_MODEL.read_bytes()


def test_training_joins_the_commonest_pair_first() -> None:
    assert train("abab abab cd", 260)[256:] == [b"ab", b"abab", b" abab", b" c"]


def test_special_tokens_are_k25s(shared_data: Path) -> None:
    published = json.loads((shared_data / "kimi-k2.5" / "tokenizer_config.json").read_text())
    assert tokenizer_config(163584)["added_tokens_decoder"] == published["added_tokens_decoder"]


def test_words_of_the_corpus_are_few_tokens(tokenizer: Tokenizer) -> None:
    text = CORPUS.read_text(encoding="utf-8")
    ids = tokenizer.encode(text, allow_special=True)
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text.encode()) / 3


def test_the_vocabulary_matches_the_model(tokenizer: Tokenizer, tiny: Path) -> None:
    assert tokenizer.vocab_size == json.loads((tiny / "config.json").read_text())["text_config"]["vocab_size"]
    assert tokenizer.special("<|im_end|>") == 1794


@settings(deadline=None)
@given(text=st.text())
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, allow_special=False)) == text


def test_a_larger_vocabulary_is_filled(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_vocabulary(tmp_path, 5000)
    large = load_tokenizer(tmp_path)
    assert large.vocab_size == 5000
    assert large.special("<|im_end|>") == 4746
    assert large.decode([1792, 4743]) == "⟨1792⟩⟨4743⟩"
    for text in ("⟨1792⟩", "the harbour ⟨4000⟩ and tea"):
        assert large.encode(text, allow_special=False) == tokenizer.encode(text, allow_special=False)
