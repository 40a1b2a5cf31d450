"""What a shard really reads: the process's own read counter against its experts' bytes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moonshard.model.checkpoint import Checkpoint
from moonshard.model.config import ModelConfig
from moonshard.model.experts import load_expert_stacks
from moonshard.model.inventory import expected_tensors
from tests.unit.model.tiny_checkpoint import kimi_text, save, wrapped

_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "I32": torch.int32}
WIDE = wrapped(
    kimi_text(
        hidden_size=2048, moe_intermediate_size=512, n_routed_experts=64, num_hidden_layers=2, intermediate_size=512
    )
)


def zeros(config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    for spec in expected_tensors(config):
        shape = spec.shape
        if spec.name.endswith("weight_shape"):
            yield spec.name, torch.tensor([2048, 512] if ".down_proj." in spec.name else [512, 2048]).int()
        else:
            yield spec.name, torch.zeros(shape, dtype=_DTYPES[spec.dtype])


def characters_read() -> int:
    fields = dict(line.split(b": ") for line in Path("/proc/self/io").read_bytes().splitlines())
    return int(fields[b"rchar"])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs /proc/self/io")
def test_a_shard_reads_its_experts_and_little_else(tmp_path: Path) -> None:
    config = ModelConfig.from_json(WIDE)
    save(tmp_path, WIDE, dict(zeros(config)), num_files=3)
    counter = characters_read()
    counter_cost = characters_read() - counter
    before = characters_read()
    with Checkpoint(tmp_path, config) as checkpoint:
        stacks = load_expert_stacks(checkpoint, range(8, 16))
    measured = characters_read() - before - counter_cost
    own = stacks[1].resident_bytes
    assert own == 8 * 3 * 2048 * 512 * 9 // 16
    assert abs(measured - checkpoint.bytes_read) < 200  # the counter's own file changes length
    assert own <= checkpoint.bytes_read <= own * 1.01
