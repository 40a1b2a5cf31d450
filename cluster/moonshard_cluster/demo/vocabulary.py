"""The tokenizer and template files of a demo checkpoint, under any vocabulary size."""

import base64
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TRAINED_MODEL = HERE / "tiktoken.model"
TEMPLATE = HERE / "chat_template.jinja"
NUM_TRAINED = 1792
NUM_SPECIAL = 256

# Names by offset from the first special id, as K2.5 has them (specification 5.1).
SPECIAL_NAMES = {
    0: "[BOS]",
    1: "[EOS]",
    2: "<|im_end|>",
    3: "<|im_user|>",
    4: "<|im_assistant|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "[EOT]",
    10: "<|im_system|>",
    11: "<|tool_calls_section_begin|>",
    12: "<|tool_calls_section_end|>",
    13: "<|tool_call_begin|>",
    14: "<|tool_call_argument_begin|>",
    15: "<|tool_call_end|>",
    17: "<|im_middle|>",
    18: "<|media_begin|>",
    19: "<|media_content|>",
    20: "<|media_end|>",
    21: "<|media_pad|>",
    22: "<think>",
    23: "</think>",
    254: "[UNK]",
    255: "[PAD]",
}
# Markers that decoding keeps even where special tokens are skipped.
_KEPT_OFFSETS = (*range(11, 16), 22, 23)


def write_vocabulary(folder: Path, vocab_size: int) -> None:
    """tiktoken.model, tokenizer_config.json and chat_template.jinja for exactly `vocab_size` ids."""
    base = vocab_size - NUM_SPECIAL
    (folder / "tiktoken.model").write_bytes(TRAINED_MODEL.read_bytes() + _filler(base))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(base), indent=2))
    (folder / "chat_template.jinja").write_bytes(TEMPLATE.read_bytes())


def tokenizer_config(base: int) -> dict[str, Any]:
    """tokenizer_config.json with K2.5's special tokens at `base` + offset."""
    added = {str(base + offset): _added_token(offset, name) for offset, name in SPECIAL_NAMES.items()}
    return {
        "tokenizer_class": "TikTokenTokenizer",
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": added,
    }


def _added_token(offset: int, name: str) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return {"content": name, **plain, "special": offset not in _KEPT_OFFSETS}


def _filler(base: int) -> bytes:
    """Tokens that no text encodes to, so that a model of any vocabulary can only say what decodes."""
    lines = (
        base64.b64encode(b"\xe2\x9f\xa8%d\xe2\x9f\xa9" % rank) + b" %d\n" % rank for rank in range(NUM_TRAINED, base)
    )
    return b"".join(lines)
