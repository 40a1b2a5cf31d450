"""The vocabulary: a byte-level BPE over the generated corpus, in the form that every Kimi checkpoint has."""

import json
import random
import re
from pathlib import Path

from moonshard.router.template import ChatTemplate
from moonshard.tokenizer import Tokenizer, load_tokenizer
from moonshard.training.data.corpus import Encoder, sample
from moonshard_cluster.demo.train_tokenizer import to_tiktoken, train
from moonshard_cluster.demo.vocabulary import NUM_SPECIAL, TEMPLATE, tokenizer_config

_MARKERS = re.compile(r"<\|[a-z_]+\|>|</?think>")
_HAN = re.compile("([\u4e00-\u9fff]{2})")


class _NoTokens(Tokenizer):
    """Stands in where only the template is wanted."""

    def __init__(self) -> None:
        pass

    def special(self, name: str) -> None:
        return None


def corpus_text(num_dialogues: int, seed: int) -> str:
    """What merges are learnt from: no markers, no digits (each stays a token), no Han run longer than two."""
    rng = random.Random(seed)
    encoder = Encoder(_NoTokens(), ChatTemplate.load(TEMPLATE.parent))
    texts = ("".join(encoder.text(sample(rng), rng)) for _ in range(num_dialogues))
    return "\n".join(_HAN.sub(r"\1\n", re.sub(r"\d", "", _MARKERS.sub("\n", text))) for text in texts)


def write_vocabulary(folder: Path, vocab_size: int, num_dialogues: int = 6000, seed: int = 0) -> None:
    """Train and write tiktoken.model, tokenizer_config.json and chat_template.jinja for `vocab_size` ids."""
    base = vocab_size - NUM_SPECIAL
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiktoken.model").write_bytes(to_tiktoken(train(corpus_text(num_dialogues, seed), base)))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(base), indent=2))
    (folder / "chat_template.jinja").write_bytes(TEMPLATE.read_bytes())


def load_encoder(folder: Path) -> Encoder:
    """Tokenizer and template of a folder that `write_vocabulary` filled."""
    return Encoder(load_tokenizer(folder), ChatTemplate.load(folder))
