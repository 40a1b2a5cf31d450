import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from moonshard.errors import CheckpointError
from moonshard.router.gateway.bundle import PARSED, build_bundle
from moonshard.tokenizer import load_tokenizer


def _files(bundle_data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(bundle_data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_what_gateways_trip_over_is_put_right(tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, broken)
    (broken / "generation_config.json").unlink()
    config = json.loads((broken / "tokenizer_config.json").read_text())
    for token in config["added_tokens_decoder"].values():
        token["special"] = True
    config["chat_template"] = "an old one"
    (broken / "tokenizer_config.json").write_text(json.dumps(config))
    special = load_tokenizer(broken).special_tokens

    files = _files(build_bundle(broken, special, (1794, 1793)).data)

    assert json.loads(files["generation_config.json"])["eos_token_id"] == [1794, 1793]
    fixed = json.loads(files["tokenizer_config.json"])
    plain = {token["content"] for token in fixed["added_tokens_decoder"].values() if not token["special"]}
    assert plain == set(PARSED)
    assert "chat_template" not in fixed
    assert (broken / "chat_template.jinja").read_bytes() in files["chat_template.jinja"]
    assert files["tiktoken.model"] == (broken / "tiktoken.model").read_bytes()
    assert files["config.json"] == (broken / "config.json").read_bytes()


def test_the_same_checkpoint_gives_the_same_bytes(tiny_checkpoint: Path) -> None:
    special = load_tokenizer(tiny_checkpoint).special_tokens
    first, second = (build_bundle(tiny_checkpoint, special, (1794,)) for _ in range(2))
    assert first == second
    assert first.sha256 == hashlib.sha256(first.data).hexdigest()


def test_an_operator_who_trusts_gets_the_reference(tiny_checkpoint: Path) -> None:
    special = load_tokenizer(tiny_checkpoint).special_tokens
    template = _files(build_bundle(tiny_checkpoint, special, (1794,), trusts=True).data)["chat_template.jinja"]
    assert b"replace(" not in template
    assert b"<|im_end|>" in template


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        build_bundle(tmp_path, {}, (1,))
