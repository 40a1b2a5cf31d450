"""What Kimi K2.5 costs: the numbers of the design and of the specification, from the published config."""

import json
from pathlib import Path

import pytest

from moonshard.errors import ConfigError
from moonshard.model.config import ModelConfig
from moonshard_cluster.demo.spec import DemoSpec
from moonshard_cluster.plan.costs import Costs

GIB = 2**30


@pytest.fixture(scope="module")
def k25(shared_data: Path) -> ModelConfig:
    return ModelConfig.from_json(json.loads((shared_data / "kimi-k2.5" / "config.json").read_text()))


def test_bytes_of_the_experts(k25: ModelConfig) -> None:
    costs = Costs.of(k25, "int4")
    assert costs.expert_bytes / 1e6 == pytest.approx(24.77, abs=0.005)
    assert costs.all_experts_bytes / 8 / 1e9 == pytest.approx(71.3, abs=0.05)
    assert costs.expert_bytes * 60 / 1e9 == pytest.approx(1.49, abs=0.005)  # one redundant slot
    assert costs.all_experts_bytes / GIB == pytest.approx(531.6, abs=0.1)
    assert costs.expert_bytes * 384 / GIB == pytest.approx(8.86, abs=0.01)


def test_bytes_of_a_token_at_batch_1(k25: ModelConfig) -> None:
    costs = Costs.of(k25, "int4")
    assert costs.expert_read_at_batch_1 / 1e9 == pytest.approx(11.9, abs=0.05)
    assert costs.attention_read / 1e9 == pytest.approx(21.1, abs=0.05)
    assert (costs.expert_read_at_batch_1 + costs.attention_read) / 1e9 == pytest.approx(33.0, abs=0.05)
    # 31.7 B active parameters, of which the experts' are four and a half bits.
    active = (costs.attention_ops + 8 * 60 * costs.expert_ops) / 2
    assert active / 1e9 == pytest.approx(31.7, abs=0.05)


def test_cache_and_rows(k25: ModelConfig) -> None:
    costs = Costs.of(k25, "int4")
    assert costs.kv_bytes == 70_272
    assert costs.kv_bytes * 262_144 / GIB == pytest.approx(17.2, abs=0.05)
    assert costs.row_bytes / 1e3 == pytest.approx(14.3, abs=0.05)
    assert costs.shards_per_row(8) == pytest.approx(5.28, abs=0.005)
    assert costs.network_bytes(8) / 1e6 == pytest.approx(9.1, abs=0.05)


def test_with_128_tokens_358_of_384_experts_are_active(k25: ModelConfig) -> None:
    costs = Costs.of(k25, "int4")
    assert costs.active_experts(128) == pytest.approx(358, abs=0.5)
    assert costs.active_experts(0) == 0
    assert costs.active_experts(1) == pytest.approx(8)
    assert costs.active_experts(1e6) == pytest.approx(384)


def test_whole_checkpoints(k25: ModelConfig) -> None:
    vision = 0.942e9  # 0.471 B parameters in BF16
    assert (Costs.of(k25, "int4").total_bytes + vision) / 1e9 == pytest.approx(595.1, abs=0.1)
    assert Costs.of(k25, "bf16").total_bytes / 1e12 == pytest.approx(2.05, abs=0.01)


def test_a_row_goes_to_every_shard_or_to_one() -> None:
    costs = Costs.of(DemoSpec.tiny().config, "int4")
    assert costs.shards_per_row(1) == 1
    assert costs.shards_per_row(costs.num_experts) == pytest.approx(costs.top_k)
    with pytest.raises(ConfigError, match="must divide 384 experts, got 7"):
        costs.shards_per_row(7)


def test_formats_differ_in_the_experts_only() -> None:
    model = DemoSpec.tiny().config
    int4, bf16 = Costs.of(model, "int4"), Costs.of(model, "bf16")
    assert int4.attention_bytes == bf16.attention_bytes
    assert bf16.expert_bytes / int4.expert_bytes == pytest.approx(16 / 4.5, rel=0.01)
