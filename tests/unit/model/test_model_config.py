"""Configuration: what is read from published files, and what is refused by name."""

import contextlib
import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moonshard.errors import ConfigError
from moonshard.model.config import ModelConfig
from tests.unit.model.tiny_checkpoint import INT4_BLOCK, deepseek_text, kimi_text, plain, wrapped


@pytest.fixture(scope="module")
def kimi(shared_data: Path) -> ModelConfig:
    return ModelConfig.from_dir(shared_data / "kimi-k2.5")


def test_the_published_config_is_read(kimi: ModelConfig) -> None:
    assert (kimi.vocab_size, kimi.hidden_size, kimi.num_hidden_layers) == (163840, 7168, 61)
    assert kimi.moe_layers == tuple(range(1, 61))
    assert (kimi.qk_head_dim, kimi.latent_dim) == (192, 576)
    assert kimi.kv_bytes_per_token(2) == 70272
    assert kimi.softmax_scale == 0.14467962580268923
    assert (kimi.name_prefix, kimi.quantization_kind) == ("language_model.", "int4")
    assert set(kimi.eos_token_ids) == {163585, 163586}
    assert kimi.has_vision


def test_an_fp8_config_parses_and_says_what_it_is(shared_data: Path) -> None:
    config = ModelConfig.from_json(json.loads((shared_data / "kimi-k2-instruct.config.json").read_text()))
    assert (config.quantization, config.quantization_kind, config.name_prefix) == (None, "fp8", "")
    with pytest.raises(ConfigError, match=r"quantization_config: fp8 weights are not supported"):
        config.require_loadable()


def test_both_spellings_of_the_yarn_block_are_one() -> None:
    old = kimi_text()
    new = {key: value for key, value in old.items() if key not in ("rope_scaling", "rope_theta")}
    block = {key: value for key, value in old["rope_scaling"].items() if key != "type"}
    new["rope_parameters"] = {**block, "rope_type": "yarn", "rope_theta": old["rope_theta"]}
    assert ModelConfig.from_json(old) == ModelConfig.from_json(new)


def test_rope_without_yarn() -> None:
    config = ModelConfig.from_json(kimi_text(rope_scaling=None))
    assert config.rope is None
    assert config.softmax_scale == config.qk_head_dim**-0.5


@pytest.mark.parametrize("place", ["text_config", "top level"])
def test_quantization_config_is_found_in_both_places(place: str) -> None:
    raw = wrapped(kimi_text())
    if place == "top level":
        raw["quantization_config"] = raw["text_config"].pop("quantization_config")
    assert ModelConfig.from_json(raw).quantization is not None


def test_end_tokens_come_from_both_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(kimi_text()))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [382, 381]}))
    assert ModelConfig.from_dir(tmp_path).eos_token_ids == (382, 381)


def test_moe_layers_follow_the_frequency() -> None:
    assert ModelConfig.from_json(kimi_text(num_hidden_layers=7, moe_layer_freq=2)).moe_layers == (2, 4, 6)


def test_the_fingerprint_tells_configurations_apart() -> None:
    first, same = (ModelConfig.from_json(kimi_text()) for _ in range(2))
    assert first.checkpoint_id == same.checkpoint_id
    assert first.checkpoint_id != ModelConfig.from_json(kimi_text(num_experts_per_tok=2)).checkpoint_id


def test_reading_a_configuration_imports_no_torch() -> None:
    code = "import sys, moonshard.model.inventory; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "128"}, r"hidden_size: .*integer, got '128'"),
        ({"hidden_size": 0}, r"hidden_size: .*greater than or equal to 1, got 0"),
        ({"hidden_size": None}, r"hidden_size: .*integer, got None"),
        ({"q_lora_rank": None}, r"q_lora_rank: .*integer, got None"),
        ({"num_hidden_layers": True}, r"num_hidden_layers: .*integer, got True"),
        ({"norm_topk_prob": "yes"}, r"norm_topk_prob: .*boolean, got 'yes'"),
        ({"rms_norm_eps": -1e-5}, r"rms_norm_eps: .*greater than 0, got -1e-05"),
        ({"rope_theta": float("inf")}, r"rope_theta: .*finite number, got inf"),
        ({"model_type": "llama"}, r"model_type: must be one of kimi_k2, deepseek_v3, got 'llama'"),
        ({"num_experts_per_tok": 17}, r"num_experts_per_tok: must be at most n_routed_experts 16, got 17"),
        ({"n_group": 3}, r"n_group: must divide n_routed_experts 16, got 3"),
        ({"n_group": 4, "topk_group": 5}, r"topk_group: must be at most n_group 4, got 5"),
        ({"n_group": 8, "topk_group": 1}, r"num_experts_per_tok: must be at most 2, .* got 4"),
        ({"first_k_dense_replace": 4}, r"first_k_dense_replace: must be at most num_hidden_layers 3, got 4"),
        ({"qk_rope_head_dim": 15}, r"qk_rope_head_dim: must be even, got 15"),
        ({"scoring_func": "softmax"}, r"scoring_func: .*'sigmoid', got 'softmax'"),
        ({"topk_method": "greedy"}, r"topk_method: .*'noaux_tc', got 'greedy'"),
        ({"hidden_act": "gelu"}, r"hidden_act: .*'silu', got 'gelu'"),
        ({"attention_bias": True}, r"attention_bias: .*False, got True"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}},
            r"rope_scaling.type: must be yarn or default, got 'linear'",
        ),
        ({"rope_scaling": {"type": "yarn"}}, r"rope_scaling.factor: is required"),
        ({"rope_scaling": "yarn"}, r"rope_scaling: must be an object, got 'yarn'"),
        ({"eos_token_id": 384}, r"eos_token_id: must be below vocab_size 384, got 384"),
        ({"quantization_config": 4}, r"quantization_config: must be an object, got 4"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        ModelConfig.from_json(kimi_text(**changes))


def test_a_missing_field_is_named_with_its_section() -> None:
    text = kimi_text()
    del text["kv_lora_rank"]
    with pytest.raises(ConfigError, match=r"^text_config\.kv_lora_rank: is required"):
        ModelConfig.from_json(wrapped(text))


def test_int4_widths_must_fill_groups() -> None:
    raw = plain(deepseek_text(moe_intermediate_size=48), quantized=True)
    with pytest.raises(ConfigError, match=r"^moe_intermediate_size: must be a multiple of 32 .* got 48"):
        ModelConfig.from_json(raw)


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("num_bits", 8, "compressed-tensors pack-quantized num_bits 8"),
        ("group_size", 128, "compressed-tensors pack-quantized group_size 128"),
        ("symmetric", False, "compressed-tensors pack-quantized symmetric False"),
        ("actorder", "group", "compressed-tensors pack-quantized actorder 'group'"),
    ],
)
def test_other_packings_are_recorded_and_refused(key: str, value: Any, kind: str) -> None:
    block = copy.deepcopy(INT4_BLOCK)
    block["config_groups"]["group_0"]["weights"][key] = value
    config = ModelConfig.from_json(kimi_text(quantization_config=block))
    assert config.quantization_kind == kind
    with pytest.raises(ConfigError, match=key):
        config.require_loadable()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"[]", "must be a JSON object, got list"),
        (None, "cannot read"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^config\.json: .*{message}"):
        ModelConfig.from_dir(tmp_path)


def test_a_vision_field_is_named_where_it_stands() -> None:
    with pytest.raises(ConfigError, match=r"^vision_config\.patch_size: is required"):
        ModelConfig.from_json({**wrapped(kimi_text()), "vision_config": {}})


NASTY: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    0.5,
    2**70,
    float("nan"),
    "x",
    [],
    [1, "x"],
    {},
    {"type": "yarn"},
    {"config_groups": 1},
)


@pytest.mark.parametrize("value", NASTY, ids=repr)
def test_no_value_anywhere_raises_anything_but_a_config_error(value: Any) -> None:
    def attempt(raw: dict[str, Any]) -> None:
        with contextlib.suppress(ConfigError):
            ModelConfig.from_json(raw, {"eos_token_id": value})
        with contextlib.suppress(ConfigError):
            ModelConfig.from_json(raw)

    whole = wrapped(kimi_text())
    for key in [*whole, "vision_config"]:
        attempt({**whole, key: value})
    for key in whole["text_config"]:
        attempt({**whole, "text_config": {**whole["text_config"], key: value}})
    for key in INT4_BLOCK:
        attempt(kimi_text(quantization_config={**INT4_BLOCK, key: value}))
    for key in whole["text_config"]["rope_scaling"]:
        attempt(kimi_text(rope_scaling={**whole["text_config"]["rope_scaling"], key: value}))
    attempt(kimi_text(quantization_config={**INT4_BLOCK, "config_groups": {"group_0": value}}))
    attempt(kimi_text(quantization_config={**INT4_BLOCK, "config_groups": {"group_0": {"weights": value}}}))
