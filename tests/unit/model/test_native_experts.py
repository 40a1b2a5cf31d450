"""Expert stacks on the native kernels against those on torch's operators."""

from pathlib import Path

import pytest
import torch

from moonshard import kernels
from moonshard.errors import CheckpointError, ConfigError
from moonshard.kernels import Pool, Precision
from moonshard.model.checkpoint import Checkpoint
from moonshard.model.config import ModelConfig
from moonshard.model.experts import load_expert_stacks
from moonshard.model.native_experts import NativeExpertStack, can_load, load_native_stacks
from tests.unit.model.tiny_checkpoint import kimi_text, wrapped, write_checkpoint

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the native kernels are not built")


def load(
    path: Path, experts: range, precision: Precision = "exact", cache: Path | None = None
) -> dict[int, NativeExpertStack]:
    with Checkpoint(path, ModelConfig.from_dir(path)) as checkpoint:
        assert can_load(checkpoint)
        return load_native_stacks(checkpoint, experts, Pool(1), precision, cache=cache)


def answer(stacks: dict[int, NativeExpertStack]) -> torch.Tensor:
    draw = torch.Generator().manual_seed(2)
    x_RD, weights_RK = torch.randn(5, 64, generator=draw), torch.rand(5, 8, generator=draw)
    ids_RK = torch.randint(0, 8, (5, 8), generator=draw, dtype=torch.int32)
    return torch.cat([stack.forward(x_RD, ids_RK, weights_RK) for stack in stacks.values()])


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


def test_what_was_repacked_once_is_mapped_without_reading_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config, cache, seen = ModelConfig.from_dir(tiny_checkpoint), tmp_path / "cache", list[tuple[int, int]]()
    first = answer(load(tiny_checkpoint, range(8), cache=cache))
    with Checkpoint(tiny_checkpoint, config) as checkpoint:
        stacks = load_native_stacks(
            checkpoint, range(8), Pool(1), "exact", lambda *told: seen.append(told), cache=cache
        )
        read = checkpoint.bytes_read
    with Checkpoint(tiny_checkpoint, config) as checkpoint:
        load_native_stacks(checkpoint, range(8), Pool(1), "exact")
        weights = sum(stack.resident_bytes for stack in stacks.values())
        assert read == checkpoint.bytes_read - weights
    assert torch.equal(answer(stacks), first)
    assert torch.equal(first, answer(load(tiny_checkpoint, range(8))))
    assert seen[-1] == (weights, weights)
    assert [path.suffix for path in cache.iterdir()] == [".panels"]


def test_a_changed_checkpoint_or_a_cut_cache_is_repacked(tiny_checkpoint: Path, tmp_path: Path) -> None:
    cache, copy = tmp_path / "cache", tmp_path / "copy"
    copy.mkdir()
    for source in tiny_checkpoint.iterdir():
        (copy / source.name).write_bytes(source.read_bytes())
    expected = answer(load(copy, range(8), cache=cache))
    [kept] = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert torch.equal(answer(load(copy, range(8), cache=cache)), expected)
    for file in copy.glob("*.safetensors"):
        file.write_bytes(file.read_bytes())  # another time of change
    load(copy, range(8), cache=cache)
    assert len(list(cache.iterdir())) == 2


def test_a_dead_writers_draft_is_removed_and_a_failed_ones_is_not_left(tiny_checkpoint: Path, tmp_path: Path) -> None:
    load(tiny_checkpoint, range(8), cache=tmp_path)
    [kept] = tmp_path.iterdir()
    kept.unlink()
    dead = kept.with_suffix(f".{2**31 - 1}.draft")
    dead.write_bytes(b"half")
    load(tiny_checkpoint, range(8), cache=tmp_path)
    assert list(tmp_path.iterdir()) == [kept]
    with pytest.raises(ConfigError, match=r"experts\.repacked_cache: cannot read .*: Not a directory"):
        load(tiny_checkpoint, range(8), cache=kept / "folder")
