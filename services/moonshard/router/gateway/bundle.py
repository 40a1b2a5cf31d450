"""The small files of a checkpoint as a gateway wants them: a zip, made from what lies in the checkpoint's folder.

What gateways trip over is put right here: think and tool markers that would be skipped as special, end-of-turn ids that
only the model's configuration tells, and the template (`shaped_template.py`).
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moonshard.router.gateway.marks import find_marks
from moonshard.router.gateway.shaped_template import shape_template
from moonshard.router.template import read_template
from moonshard.tokenizer.files import read_bytes, read_json

AS_THEY_ARE = ("tiktoken.model", "tokenizer.json")
# A gateway that skips special tokens must not skip these: its parsers read them (specification 5.1).
PARSED = (
    "<think>",
    "</think>",
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)


@dataclass(frozen=True, slots=True)
class Bundle:
    """data: a zip. sha256: of it, in hexadecimal."""

    data: bytes
    sha256: str


def build_bundle(
    checkpoint: Path, special_ids: Mapping[str, int], eos_token_ids: Sequence[int], trusts: bool = False
) -> Bundle:
    """The same bytes for the same checkpoint. trusts: users may spell control tokens, as in the reference.

    Raises CheckpointError naming the file.
    """
    files = {name: read_bytes(checkpoint / name) for name in AS_THEY_ARE if (checkpoint / name).is_file()}
    files["config.json"] = read_bytes(checkpoint / "config.json")
    files["tokenizer_config.json"] = _as_json(_tokenizer_config(checkpoint))
    files["generation_config.json"] = _as_json(_generation_config(checkpoint, eos_token_ids))
    files["chat_template.jinja"] = _template(checkpoint, special_ids, trusts).encode()
    data = _zipped(files)
    return Bundle(data, hashlib.sha256(data).hexdigest())


def _template(checkpoint: Path, special_ids: Mapping[str, int], trusts: bool) -> str:
    source, _ = read_template(checkpoint)
    marks = find_marks(special_ids)
    return shape_template(source, marks, () if trusts else special_ids) if marks else source


def _tokenizer_config(checkpoint: Path) -> dict[str, Any]:
    config = read_json(checkpoint / "tokenizer_config.json")
    # The shaped template has a file of its own.
    config.pop("chat_template", None)
    for token in config.get("added_tokens_decoder", {}).values():
        if token.get("content") in PARSED:
            token["special"] = False
    return config


def _generation_config(checkpoint: Path, eos_token_ids: Sequence[int]) -> dict[str, Any]:
    path = checkpoint / "generation_config.json"
    return (read_json(path) if path.is_file() else {}) | {"eos_token_id": list(eos_token_ids)}


def _as_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def _zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            # ZipInfo's own date, so that the hash tells of the content only.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
