"""Reading by role: names, forms, dtypes, exact values, and how many bytes it takes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moonshard.errors import ConfigError
from moonshard.model.checkpoint import Checkpoint
from moonshard.model.config import ModelConfig
from moonshard.model.experts import ExpertStack, load_expert_stacks
from moonshard.model.inventory import attention_tensors, expert_tensors, plain_name
from moonshard.model.weights import DecoderWeights, StreamedWeights, destinations, load_weights
from tests.unit.model.tiny_checkpoint import deepseek_text, kimi_text, plain, save, tensors, wrapped, write_checkpoint


def header_bytes(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def opened(path: Path) -> Checkpoint:
    return Checkpoint(path, ModelConfig.from_dir(path))


def assert_stack_holds(stack: ExpertStack, layer: int, named: dict[str, Tensor]) -> None:
    for row, expert in enumerate(stack.experts):
        stem = f"language_model.model.layers.{layer}.mlp.experts.{expert}"
        for index, suffix in enumerate(("weight_packed", "weight_scale")):
            gate_up = torch.cat([named[f"{stem}.{p}_proj.{suffix}"] for p in ("gate", "up")])
            assert torch.equal(stack.gate_up.tensors[index][row], gate_up)
            assert torch.equal(stack.down.tensors[index][row], named[f"{stem}.down_proj.{suffix}"])


@pytest.mark.parametrize("num_files", [0, 1, 5])
def test_experts_are_read_exactly(tmp_path: Path, num_files: int) -> None:
    named = tensors(wrapped(kimi_text()))
    save(tmp_path, wrapped(kimi_text()), named, num_files)
    with opened(tmp_path) as checkpoint:
        stacks = load_expert_stacks(checkpoint, range(4, 8))
    assert list(stacks) == [1, 2]
    for layer, stack in stacks.items():
        assert stack.experts == range(4, 8)
        assert_stack_holds(stack, layer, named)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("raw", [wrapped(kimi_text()), plain(deepseek_text())], ids=["wrapper", "plain"])
def test_the_attention_role_is_read_exactly(tmp_path: Path, raw: dict[str, object], dtype: torch.dtype) -> None:
    named = {plain_name(name): tensor for name, tensor in tensors(raw).items()}
    write_checkpoint(tmp_path, raw)
    config = ModelConfig.from_json(raw)
    with opened(tmp_path) as checkpoint:
        parts = dict(destinations(config, load_weights(checkpoint, dtype)))
    assert parts.keys() == {plain_name(spec.name) for spec in attention_tensors(config)}
    for name, part in parts.items():
        assert part.dtype == (torch.float32 if ".gate." in name else dtype)
        assert torch.equal(part, named[name].to(part.dtype)), name


def rename(change: Callable[[str], str]) -> dict[str, Tensor]:
    return {change(name): tensor for name, tensor in tensors(wrapped(kimi_text())).items()}


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.removeprefix("language_model."),
        lambda name: name.replace("language_model.model.", "language_model."),
        lambda name: f"language_model.{name}" if not name.startswith("language_model.") else name,
    ],
    ids=["no prefix", "alias without .model.", "published"],
)
def test_prefix_and_alias_forms_load(tmp_path: Path, change: Callable[[str], str]) -> None:
    save(tmp_path, wrapped(kimi_text()), rename(change))
    with opened(tmp_path) as checkpoint:
        stacks = load_expert_stacks(checkpoint, range(16))
        load_weights(checkpoint)
    assert_stack_holds(stacks[2], 2, tensors(wrapped(kimi_text())))


def test_vision_and_leftover_tensors_are_passed_over(tmp_path: Path) -> None:
    extra = ("vision_tower.patch_embed.proj.bias", "language_model.model.layers.0.self_attn.rotary_emb.inv_freq")
    named = {**tensors(wrapped(kimi_text())), **dict.fromkeys(extra, torch.zeros(3))}
    save(tmp_path, wrapped(kimi_text()), {name: tensor.clone() for name, tensor in named.items()})
    with opened(tmp_path) as checkpoint:
        load_weights(checkpoint)


def test_the_layer_of_speculative_prediction_is_passed_over(tmp_path: Path) -> None:
    raw = plain(deepseek_text(num_nextn_predict_layers=1))
    save(tmp_path, raw, {**tensors(raw), "model.layers.4.eh_proj.weight": torch.zeros(2)})
    with opened(tmp_path) as checkpoint:
        load_weights(checkpoint)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_float_dtypes_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    named = tensors(wrapped(kimi_text()))
    stored = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor.long() if name.endswith("shape") else tensor
        for name, tensor in named.items()
    }
    save(tmp_path, wrapped(kimi_text()), stored)
    with opened(tmp_path) as checkpoint:
        stack = load_expert_stacks(checkpoint, range(2))[1]
        head = load_weights(checkpoint, torch.bfloat16).head
    assert stack.gate_up.tensors[1].dtype == torch.float32  # no stored scale is rounded
    expected = stored["language_model.model.layers.1.mlp.experts.1.down_proj.weight_scale"].float()
    assert torch.equal(stack.down.tensors[1][1], expected)
    assert torch.equal(head, named["language_model.lm_head.weight"].to(dtype).to(torch.bfloat16))


def test_progress_counts_every_byte_of_data(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, wrapped(kimi_text()))
    seen: list[tuple[int, int]] = []
    with opened(tmp_path) as checkpoint:
        stacks = load_expert_stacks(checkpoint, range(8), progress=lambda loaded, total: seen.append((loaded, total)))
    loaded, total = seen[-1]
    assert loaded == total == sum(stack.resident_bytes for stack in stacks.values())
    assert seen == sorted(seen)


def test_bytes_read_are_exact_and_only_headers_in_need_are_read(tmp_path: Path) -> None:
    raw = wrapped(kimi_text())
    named = tensors(raw)
    files = save(tmp_path, raw, named, num_files=6)
    config = ModelConfig.from_json(raw)
    wanted = {s.name for layer in config.moe_layers for e in range(4) for s in expert_tensors(config, layer, e)}
    touched = [file for file, content in files.items() if wanted & content.keys()]
    assert 0 < len(touched) < len(files)
    for file in files.keys() - set(touched):
        (tmp_path / file).write_bytes(b"never looked at")
    with opened(tmp_path) as checkpoint:
        load_expert_stacks(checkpoint, range(4))
    index = (tmp_path / "model.safetensors.index.json").stat().st_size
    data = sum(named[name].nbytes for name in wanted)
    assert checkpoint.bytes_read == index + sum(header_bytes(tmp_path / f) for f in touched) + data


def test_an_empty_or_foreign_block_of_experts_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, wrapped(kimi_text()))
    with opened(tmp_path) as checkpoint:
        for experts in (range(0), range(8, 17), range(0, 8, 2)):
            with pytest.raises(ConfigError, match=r"experts: must be a block of 0\.\.15"):
                load_expert_stacks(checkpoint, experts)


def test_fp8_weights_are_refused(shared_data: Path, tmp_path: Path) -> None:
    raw = json.loads((shared_data / "kimi-k2-instruct.config.json").read_text())
    with pytest.raises(ConfigError, match="fp8"):
        Checkpoint(tmp_path, ModelConfig.from_json(raw))


def test_streamed_weights_are_the_loaded_ones_and_tell_their_progress(tiny_checkpoint: Path) -> None:
    config = ModelConfig.from_dir(tiny_checkpoint)
    seen: list[tuple[int, int]] = []
    with Checkpoint(tiny_checkpoint, config) as whole, Checkpoint(tiny_checkpoint, config) as parts:
        loaded = load_weights(whole, torch.bfloat16)
        streamed = StreamedWeights(parts, torch.bfloat16, lambda *told: seen.append(told))
        found = DecoderWeights(streamed.embedding, tuple(streamed.layers), streamed.norm, streamed.head)
        assert parts.bytes_read == whole.bytes_read
    expected = dict(destinations(config, loaded))
    assert all(torch.equal(part, expected[name]) for name, part in destinations(config, found))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]
