"""Sizes of the demo and their refusals."""

from typing import Any

import pytest

from moonshard.errors import ConfigError
from moonshard.model.inventory import summarise
from moonshard_cluster.demo.spec import DemoSpec


def test_sizes() -> None:
    assert summarise(DemoSpec.tiny().config).total_bytes < 5_000_000
    assert 80_000_000 < summarise(DemoSpec.small().config).total_bytes < 100_000_000


@pytest.mark.parametrize("spec", [DemoSpec.tiny(), DemoSpec.small()])
def test_shape_of_the_family(spec: DemoSpec) -> None:
    config = spec.config
    assert (config.n_routed_experts, config.num_experts_per_tok) == (384, 8)
    assert config.moe_layers == tuple(range(1, spec.num_hidden_layers))
    assert config.quantization is not None
    assert config.rope is not None
    assert config.max_position_embeddings == 262144


def test_real_widths_give_the_published_bytes_per_expert() -> None:
    spec = DemoSpec(
        hidden_size=7168,
        num_hidden_layers=61,
        num_attention_heads=64,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        moe_intermediate_size=2048,
        intermediate_size=18432,
        vocab_size=163840,
    )
    summary = summarise(spec.config)
    assert summary.bytes_per_expert == 24_772_632
    assert summary.kv_bytes_per_token == 70_272
    assert spec.config.softmax_scale == pytest.approx(0.14467962580268923, abs=1e-15)
    assert (spec.config.bos_token_id, spec.config.eos_token_ids) == (163584, (163586, 163585))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 100}, "hidden_size: must be a multiple of 32, got 100"),
        ({"hidden_size": 0}, "hidden_size: must be a whole number of at least 1, got 0"),
        ({"hidden_size": 64.0}, "hidden_size: must be a whole number of at least 1, got 64.0"),
        ({"hidden_size": 2**25}, "hidden_size: .*got 33554432"),
        ({"moe_intermediate_size": 48}, "moe_intermediate_size: must be a multiple of 32, got 48"),
        ({"intermediate_size": 33}, "intermediate_size: must be a multiple of 32, got 33"),
        ({"q_lora_rank": 31}, "q_lora_rank: must be a multiple of 2, got 31"),
        ({"qk_rope_head_dim": 15}, "qk_rope_head_dim: must be a multiple of 2, got 15"),
        ({"num_hidden_layers": 1}, "num_hidden_layers: must be at least 2 .*, got 1"),
        ({"num_attention_heads": -2}, "num_attention_heads: must be a whole number of at least 1, got -2"),
        ({"num_experts_per_tok": 385}, "num_experts_per_tok: must be at most n_routed_experts 384, got 385"),
        ({"vocab_size": 2047}, "vocab_size: must be at least 2048, .*got 2047"),
        ({"seed": -1}, "seed: must be a whole number of at least 0, got -1"),
        ({"calm": 0.0}, "calm: must be a number above 0, got 0.0"),
        ({"calm": float("nan")}, "calm: must be a number above 0, got nan"),
        ({"name": "../x"}, r"name: must be letters, digits, .*, got '\.\./x'"),
    ],
)
def test_refusals_name_field_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$") as refusal:
        DemoSpec.tiny(**changes)
    assert refusal.value.field == next(iter(changes))
