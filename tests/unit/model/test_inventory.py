"""The inventory against the published totals (specification 1.5 and 3)."""

import json
from pathlib import Path

import pytest

from moonshard.errors import ConfigError
from moonshard.model.config import ModelConfig
from moonshard.model.inventory import expected_tensors, is_ignorable, plain_name, summarise
from tests.unit.model.tiny_checkpoint import kimi_text, plain, wrapped


@pytest.fixture(scope="module")
def kimi(shared_data: Path) -> ModelConfig:
    return ModelConfig.from_dir(shared_data / "kimi-k2.5")


def test_every_published_tensor_is_listed_once(kimi: ModelConfig) -> None:
    specs = {spec.name: spec for spec in expected_tensors(kimi)}
    assert len(specs) == 208_550 == sum(1 for _ in expected_tensors(kimi))
    prefix = "language_model.model.layers"
    assert specs[f"{prefix}.60.mlp.experts.383.down_proj.weight_scale"].shape == (7168, 64)
    assert specs[f"{prefix}.1.mlp.experts.0.up_proj.weight_packed"][1:4] == ((2048, 896), "I32", "expert")
    assert specs[f"{prefix}.7.self_attn.kv_b_proj.weight"].shape == (16384, 512)
    assert specs[f"{prefix}.7.mlp.gate.e_score_correction_bias"].dtype == "F32"
    assert specs["language_model.lm_head.weight"].shape == (163840, 7168)
    assert specs["vision_tower.encoder.blocks.26.wqkv.bias"].shape == (3456,)
    assert specs["mm_projector.proj.2.weight"].shape == (7168, 4608)


def test_the_totals_are_those_of_the_published_checkpoint(kimi: ModelConfig) -> None:
    summary = summarise(kimi, num_shards=8)
    assert summary.num_tensors == 208_550
    assert summary.total_bytes == 595_148_192_736
    assert summary.parameters_by_role["expert"] == 384 * 60 * 3 * 2048 * 7168
    assert summary.num_parameters == 1_026_879_376_368
    assert summary.expert_bytes_per_shard / 1e9 == pytest.approx(71.3, abs=0.05)
    assert (summary.experts_per_shard, summary.bytes_per_expert) == (48, 24_772_632)
    assert summary.kv_bytes_per_token == 70_272


def test_shards_must_divide_the_experts(kimi: ModelConfig) -> None:
    with pytest.raises(ConfigError, match=r"num_shards: must divide the model's 384 experts, got 7"):
        summarise(kimi, num_shards=7)


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.layers.3.input_layernorm.weight",
        "language_model.layers.3.input_layernorm.weight",
        "model.layers.3.input_layernorm.weight",
    ],
)
def test_prefix_and_alias_forms_are_one_name(name: str) -> None:
    assert plain_name(name) == "model.layers.3.input_layernorm.weight"


def test_what_may_lie_in_a_checkpoint_beside_the_inventory() -> None:
    config = ModelConfig.from_json(kimi_text(num_nextn_predict_layers=1))
    assert is_ignorable("model.layers.0.self_attn.rotary_emb.inv_freq", config)
    assert is_ignorable("vision_tower.anything", config)
    assert is_ignorable("model.layers.3.eh_proj.weight", config)
    assert not is_ignorable("model.layers.4.eh_proj.weight", config)
    assert not is_ignorable("model.layers.2.mlp.experts.16.up_proj.weight", config)


def test_plain_experts_have_one_tensor_per_projection() -> None:
    packed = ModelConfig.from_json(wrapped(kimi_text()))
    unpacked = ModelConfig.from_json(plain(kimi_text()))
    experts = [sum(spec.role == "expert" for spec in expected_tensors(c)) for c in (packed, unpacked)]
    assert experts == [2 * 16 * 9, 2 * 16 * 3]
    assert summarise(packed, 4).num_parameters == summarise(unpacked, 4).num_parameters


def test_an_fp8_checkpoint_is_listed(shared_data: Path) -> None:
    config = ModelConfig.from_json(json.loads((shared_data / "kimi-k2-instruct.config.json").read_text()))
    specs = {spec.name: spec for spec in expected_tensors(config)}
    name = "model.layers.1.mlp.experts.0.down_proj.weight"
    assert specs[name][1:3] == ((7168, 2048), "F8_E4M3")
    assert specs[f"{name}_scale_inv"][1:3] == ((56, 16), "F32")
    assert specs["model.layers.1.self_attn.kv_a_proj_with_mqa.weight_scale_inv"].shape == (5, 56)
    assert specs["model.layers.1.mlp.gate.weight"].dtype == specs["lm_head.weight"].dtype == "BF16"
    summary = summarise(config)
    assert summary.num_parameters == 1_026_408_232_448
    assert summary.total_bytes / 1e9 == pytest.approx(1029, abs=1)


def test_a_format_that_is_not_known_is_not_listed() -> None:
    config = ModelConfig.from_json(kimi_text(quantization_config={"quant_method": "awq"}))
    with pytest.raises(ConfigError, match="quantization_config: awq weights are not supported"):
        next(expected_tensors(config))
