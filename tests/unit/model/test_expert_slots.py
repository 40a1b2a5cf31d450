"""Single experts loaded into slots of running stacks: as good as loaded at the start, and never into a cache's file."""

from pathlib import Path

import pytest
import torch

from moonshard import kernels
from moonshard.kernels import Pool
from moonshard.model.checkpoint import Checkpoint
from moonshard.model.config import ModelConfig
from moonshard.model.experts import StackSlots, load_expert_stacks
from moonshard.model.native_experts import NativeExpertStack, NativeSlots, load_native_stacks

native_only = pytest.mark.skipif(not kernels.available(), reason="the native kernels are not built")
IDS, SLOTS = (3, 200, 5, 383), (2, 0, 4, 5)  # two experts of the block, two that are loaded over and behind it


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_RD, ids_RK, weights_RK and the slots of the experts in IDS."""
    draw, slots_E = torch.Generator().manual_seed(4), torch.full((384,), -1, dtype=torch.int32)
    slots_E[list(IDS)] = torch.tensor(SLOTS, dtype=torch.int32)
    return torch.randn(6, 64, generator=draw), torch.tensor([IDS] * 6).int(), torch.rand(6, 4, generator=draw), slots_E


def test_on_torchs_operators(tiny_checkpoint: Path) -> None:
    x_RD, ids_RK, weights_RK, slots_E = rows()
    with Checkpoint(tiny_checkpoint, ModelConfig.from_dir(tiny_checkpoint)) as checkpoint:
        all_there = load_expert_stacks(checkpoint, range(384))
        stacks = load_expert_stacks(checkpoint, range(1, 6), num_slots=6)
        loader = StackSlots(checkpoint, stacks)
        for layer in stacks:
            loader.load(layer, 200, 0)
            loader.load(layer, 383, 5)
    for layer, stack in stacks.items():
        found = stack.forward_apart(x_RD, ids_RK, weights_RK, slots_E)
        everywhere = torch.arange(384, dtype=torch.int32)
        torch.testing.assert_close(found, all_there[layer].forward_apart(x_RD, ids_RK, weights_RK, everywhere))


@native_only
@pytest.mark.parametrize("cached", [False, True])
def test_on_native_kernels(cached: bool, tiny_checkpoint: Path, tmp_path: Path) -> None:
    x_RD, ids_RK, weights_RK, slots_E = rows()
    cache, everywhere = tmp_path / "cache" if cached else None, torch.arange(384, dtype=torch.int32)
    contents = b""
    with Checkpoint(tiny_checkpoint, ModelConfig.from_dir(tiny_checkpoint)) as checkpoint:
        all_there = load_native_stacks(checkpoint, range(384), Pool(1), "int8")

        def load() -> dict[int, NativeExpertStack]:
            stacks = load_native_stacks(checkpoint, range(1, 6), Pool(1), "int8", cache=cache, num_slots=6)
            loader = NativeSlots(checkpoint, stacks)
            for layer in stacks:
                loader.load(layer, 200, 0)
                loader.load(layer, 383, 5)
            return stacks

        for _ in range(2):  # the second finds what the first has written
            for layer, stack in load().items():
                found = stack.forward_apart(x_RD, ids_RK, weights_RK, slots_E)
                assert torch.equal(found, all_there[layer].forward_apart(x_RD, ids_RK, weights_RK, everywhere))
            if cache:
                [file] = cache.iterdir()
                assert file.name.endswith("-1-6-of-6.panels")
                assert contents in (b"", file.read_bytes())
                contents = file.read_bytes()
