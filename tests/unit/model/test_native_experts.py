"""Expert stacks on the native kernels against those on torch's operators."""

from pathlib import Path

import pytest
import torch

from moonshard import kernels
from moonshard.errors import CheckpointError
from moonshard.kernels import Pool, Precision
from moonshard.model.checkpoint import Checkpoint
from moonshard.model.config import ModelConfig
from moonshard.model.experts import load_expert_stacks
from moonshard.model.native_experts import NativeExpertStack, can_load, load_native_stacks
from tests.unit.model.tiny_checkpoint import kimi_text, wrapped, write_checkpoint

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the native kernels are not built")


def load(path: Path, experts: range, precision: Precision = "exact") -> dict[int, NativeExpertStack]:
    with Checkpoint(path, ModelConfig.from_dir(path)) as checkpoint:
        assert can_load(checkpoint)
        return load_native_stacks(checkpoint, experts, Pool(1), precision)


@pytest.mark.parametrize(("precision", "tolerance"), [("exact", 1e-6), ("int8", 2e-2)])
def test_both_kinds_of_stack_agree(tiny_checkpoint: Path, precision: Precision, tolerance: float) -> None:
    experts = range(96, 144)
    native = load(tiny_checkpoint, experts, precision)
    with Checkpoint(tiny_checkpoint, ModelConfig.from_dir(tiny_checkpoint)) as checkpoint:
        plain = load_expert_stacks(checkpoint, experts)
    draw = torch.Generator().manual_seed(1)
    x_RD = torch.randn(11, 64, generator=draw)
    ids_RK = torch.randint(90, 150, (11, 8), generator=draw, dtype=torch.int32)
    ids_RK = torch.where((ids_RK >= 96) & (ids_RK < 144), ids_RK, -1)
    weights_RK = torch.rand(11, 8, generator=draw)
    assert native.keys() == plain.keys()
    for layer in native:
        expected_RD = plain[layer].forward(x_RD, ids_RK, weights_RK)
        found_RD = native[layer].forward(x_RD, ids_RK, weights_RK)
        assert (found_RD - expected_RD).norm() <= tolerance * expected_RD.norm()


def test_loading_reads_what_the_plain_loader_reads_and_tells_its_progress(tiny_checkpoint: Path) -> None:
    config = ModelConfig.from_dir(tiny_checkpoint)
    seen: list[tuple[int, int]] = []
    with Checkpoint(tiny_checkpoint, config) as native, Checkpoint(tiny_checkpoint, config) as plain:
        stacks = load_native_stacks(native, range(8), Pool(1), "exact", lambda *told: seen.append(told))
        load_expert_stacks(plain, range(8))
        assert native.bytes_read == plain.bytes_read
    assert seen[-1][0] == seen[-1][1] == sum(stack.resident_bytes for stack in stacks.values())
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_plain_experts_are_left_to_the_plain_loader(tmp_path: Path) -> None:
    path = tmp_path / "plain"
    write_checkpoint(path, wrapped(kimi_text(), quantized=False))
    with Checkpoint(path, ModelConfig.from_dir(path)) as checkpoint:
        assert not can_load(checkpoint)


def test_a_truncated_file_is_found_before_weights_are_read(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for source in tiny_checkpoint.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    broken = tmp_path / "model-00002-of-000004.safetensors"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model-00002-of-000004\.safetensors"):
        load(tmp_path, range(8))
