"""One shard: what it computes, and what it counts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from moonshard.experts.counters import LoadCounters
from moonshard.experts.shard import Shard
from moonshard.model.checkpoint import Checkpoint
from moonshard.model.config import ModelConfig
from moonshard.model.experts import load_expert_stacks
from moonshard.transport.contract import ExpertBatch, Segment


def test_counters_count_rows_per_layer_and_expert() -> None:
    counters = LoadCounters((1, 2), range(48, 51))
    counters.add(1, np.array([[48, -1], [50, 48], [-1, -1]], dtype=np.int32))
    counters.add(2, np.array([[49, 50]], dtype=np.int32))
    counters.add(2, np.empty((0, 2), dtype=np.int32))
    assert counters.rows_LE.tolist() == [[2, 0, 1], [0, 1, 1]]
    assert (counters.num_batches, counters.num_rows) == (3, 4)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> ModelConfig:
    return ModelConfig.from_dir(tiny_checkpoint)


def load(path: Path, model: ModelConfig, experts: range) -> Shard:
    with Checkpoint(path, model) as checkpoint:
        return Shard(load_expert_stacks(checkpoint, experts), experts)


def test_eight_shards_together_give_what_one_with_all_experts_gives(tiny_checkpoint: Path, model: ModelConfig) -> None:
    draw = torch.Generator().manual_seed(0)
    x_RD = torch.randn(9, model.hidden_size, generator=draw)
    ids_RK = torch.stack([torch.randperm(384, generator=draw)[:8] for _ in range(9)]).int()
    weights_RK = torch.rand(9, 8, generator=draw)

    def batch(experts: range) -> ExpertBatch:
        local = (ids_RK >= experts.start) & (ids_RK < experts.stop)
        return ExpertBatch(1, x_RD, torch.where(local, ids_RK, -1), weights_RK, (Segment(0, 0, 0, 9),))

    whole = load(tiny_checkpoint, model, range(384))
    shards = [load(tiny_checkpoint, model, range(s * 48, s * 48 + 48)) for s in range(8)]
    total_RD = sum(shard.compute(batch(shard.counters.experts)) for shard in shards)
    torch.testing.assert_close(total_RD, whole.compute(batch(range(384))), atol=1e-5, rtol=1e-5)
    assert sum(int(shard.counters.rows_LE.sum()) for shard in shards) == int(whole.counters.rows_LE.sum()) == 72
