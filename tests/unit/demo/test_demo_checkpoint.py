"""The files of a demo checkpoint: names, shapes and types as the inventory has them; same seed, same bytes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from moonshard.errors import CheckpointError, ConfigError
from moonshard.model.config import ModelConfig
from moonshard.model.int4 import dequantise
from moonshard.model.inventory import expected_tensors, summarise
from moonshard_cluster.demo import checkpoint
from moonshard_cluster.demo.checkpoint import write_demo
from moonshard_cluster.demo.spec import DemoSpec

DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "I32": torch.int32}
TEXT = "language_model.model."
EXPERT = f"{TEXT}layers.1.mlp.experts.0."


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    return tensors


@pytest.fixture(scope="module")
def tensors(tiny: Path) -> dict[str, torch.Tensor]:
    return read_all(tiny)


def test_every_tensor_is_as_the_inventory_says(tiny: Path, tensors: dict[str, torch.Tensor]) -> None:
    expected = {tensor.name: tensor for tensor in expected_tensors(ModelConfig.from_dir(tiny))}
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tuple(tensor.shape) == expected[name].shape, name
        assert tensor.dtype == DTYPES[expected[name].dtype], name


def test_files_and_index(tiny: Path) -> None:
    index = json.loads((tiny / "model.safetensors.index.json").read_text())
    names = sorted(path.name for path in tiny.glob("*.safetensors"))
    assert names == [f"model-{number:05}-of-000004.safetensors" for number in range(1, 5)]
    assert index["weight_map"][f"{EXPERT}up_proj.weight_packed"] == names[1]
    assert index["weight_map"]["language_model.lm_head.weight"] == names[3]
    assert index["metadata"]["total_size"] == summarise(ModelConfig.from_dir(tiny)).total_bytes
    for name in names:
        with safe_open(tiny / name, framework="pt") as file:
            assert {key for key, value in index["weight_map"].items() if value == name} == set(file.keys())


def test_experts_of_a_file_lie_together(tiny: Path) -> None:
    raw = (tiny / "model-00002-of-000004.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    places = {name: entry["data_offsets"][0] for name, entry in header.items() if ".experts." in name}
    experts = [int(name.split(".experts.")[1].split(".")[0]) for name in sorted(places, key=places.__getitem__)]
    assert experts == sorted(experts)
    assert all(place % 4 == 0 for place in places.values())


def test_weight_shape_is_out_and_in(tensors: dict[str, torch.Tensor]) -> None:
    assert tensors[f"{EXPERT}up_proj.weight_shape"].tolist() == [32, 64]
    assert tensors[f"{EXPERT}down_proj.weight_shape"].tolist() == [64, 32]


def test_experts_are_distinct(tensors: dict[str, torch.Tensor]) -> None:
    packed = [tensor for name, tensor in tensors.items() if name.endswith("up_proj.weight_packed")]
    assert len(packed) == 2 * 384
    assert len({tensor.numpy().tobytes() for tensor in packed}) == len(packed)


def test_the_config_is_the_published_wrapper(tiny: Path, shared_data: Path) -> None:
    ours = json.loads((tiny / "config.json").read_text())
    published = json.loads((shared_data / "kimi-k2.5" / "config.json").read_text())
    assert ours["architectures"] == published["architectures"]
    assert ours.keys() <= published.keys()
    assert ours["text_config"].keys() <= published["text_config"].keys()
    for key in ("quantization_config", "rope_scaling", "routed_scaling_factor", "rms_norm_eps", "model_type"):
        assert ours["text_config"][key] == published["text_config"][key]


def test_both_ends_of_a_turn(tiny: Path) -> None:
    config = ModelConfig.from_dir(tiny)
    assert config.eos_token_ids == (1794, 1793)
    assert (config.bos_token_id, config.pad_token_id) == (1792, 2047)
    assert not config.has_vision
    assert config.name_prefix == "language_model."


def test_same_seed_same_bytes(tiny: Path, tmp_path: Path) -> None:
    write_demo(tmp_path / "again", DemoSpec.tiny())
    write_demo(tmp_path / "other", DemoSpec.tiny(seed=1))
    for path in tiny.iterdir():
        again, other = (tmp_path / folder / path.name for folder in ("again", "other"))
        assert path.read_bytes() == again.read_bytes()
        assert (path.read_bytes() == other.read_bytes()) is (path.suffix != ".safetensors")


def test_the_seeds_bytes_are_pinned(tensors: dict[str, torch.Tensor]) -> None:
    """Whoever changes these changes every demo: raise FORMAT_VERSION in cache.py."""
    assert tensors[f"{EXPERT}gate_proj.weight_packed"][0, :3].tolist() == PINNED_WORDS
    assert tensors[f"{TEXT}layers.1.mlp.gate.e_score_correction_bias"][:3].tolist() == pytest.approx(PINNED_BIAS)


PINNED_WORDS = [-999712150, 1800892203, -849884981]
PINNED_BIAS = [0.020187703892588615, 0.013636612333357334, -0.026614876464009285]


def test_layers_do_not_repeat(tensors: dict[str, torch.Tensor]) -> None:
    first, second = (tensors[f"{TEXT}layers.{layer}.mlp.gate.weight"] for layer in (1, 2))
    assert not torch.equal(first, second)


def test_calm_scales_what_layers_add(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    write_demo(tmp_path / "chaotic", DemoSpec.tiny().chaotic())
    chaotic = read_all(tmp_path / "chaotic")
    for name in (f"{TEXT}layers.0.self_attn.o_proj.weight", f"{TEXT}layers.2.mlp.shared_experts.down_proj.weight"):
        assert tensors[name].float().std().item() == pytest.approx(0.15 * chaotic[name].float().std().item(), rel=0.01)
    name = f"{EXPERT}down_proj.weight_scale"
    assert tensors[name].float().mean().item() == pytest.approx(0.15 * chaotic[name].float().mean().item(), rel=0.01)
    name = f"{EXPERT}up_proj.weight_scale"
    assert torch.equal(tensors[name], chaotic[name])


def test_dequantised_experts_are_near_normal(tmp_path: Path) -> None:
    write_demo(tmp_path / "wide", DemoSpec.tiny(hidden_size=512, moe_intermediate_size=256, n_routed_experts=8))
    wide = read_all(tmp_path / "wide")
    up = [dequantise(wide[f"{name}_packed"], wide[f"{name}_scale"]) for name in projections("up_proj")]
    weights = torch.stack(up) * 512**0.5
    assert weights.mean().item() == pytest.approx(0.0, abs=0.004)
    assert weights.std().item() == pytest.approx(1.0, abs=0.01)
    kurtosis = weights.pow(4).mean() / weights.pow(2).mean() ** 2
    assert 2.5 < kurtosis < 3.5
    assert abs(torch.corrcoef(torch.stack([up[0].flatten(), up[1].flatten()]))[0, 1]) < 0.02


def projections(name: str) -> list[str]:
    return [f"{TEXT}layers.1.mlp.experts.{expert}.{name}.weight" for expert in range(8)]


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("model.embed_tokens.weight", 0.0, 0.5),
        ("model.norm.weight", 1.0, 0.1),
        ("model.layers.1.mlp.gate.weight", 0.0, 1.5 / 64**0.5),
        ("model.layers.1.mlp.gate.e_score_correction_bias", 0.0, 0.02),
        ("model.layers.0.mlp.down_proj.weight", 0.0, 0.15 / 128**0.5),
        ("model.layers.0.mlp.up_proj.weight", 0.0, 1 / 64**0.5),
        ("model.layers.2.self_attn.kv_b_proj.weight", 0.0, 1 / 32**0.5),
    ],
)
def test_scales(tensors: dict[str, torch.Tensor], name: str, mean: float, std: float) -> None:
    values = tensors[f"language_model.{name}"].float()
    assert values.std().item() == pytest.approx(std, rel=0.3 if values.ndim == 1 else 0.05)
    assert values.mean().item() == pytest.approx(mean, abs=5 * std / values.numel() ** 0.5)


def test_the_head_is_quiet_for_what_nobody_wants_to_read(tensors: dict[str, torch.Tensor]) -> None:
    head = tensors["language_model.lm_head.weight"].float() * 64**0.5
    assert head[:32].std().item() == pytest.approx(0.2, rel=0.1)
    assert head[32:1795].std().item() == pytest.approx(2.0, rel=0.02)
    assert head[1793:1795].std().item() == pytest.approx(2.0, rel=0.3)
    assert head[1795:].std().item() == pytest.approx(0.2, rel=0.02)


def test_progress_ends_at_the_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PROGRESS_BYTES", 100_000)
    told: list[tuple[int, int]] = []
    write_demo(tmp_path / "demo", DemoSpec.tiny(), lambda written, total: told.append((written, total)))
    written = [pair[0] for pair in told]
    assert len(told) > 10
    assert written == sorted(written)
    assert told[-1] == (sum(t.num_bytes for t in expected_tensors(DemoSpec.tiny().config)),) * 2


def test_a_used_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"path: .* exists and is not an empty directory"):
        write_demo(tmp_path, DemoSpec.tiny())
    with pytest.raises(ConfigError, match="path: "):
        write_demo(tmp_path / "file", DemoSpec.tiny())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    write_demo(folder, DemoSpec.tiny())
    assert (folder / "config.json").is_file()


def test_nothing_stays_after_a_failure(tmp_path: Path) -> None:
    def stop(written: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demo(tmp_path / "demo", DemoSpec.tiny(), stop)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="demo: cannot be written: Not a directory"):
        write_demo(tmp_path / "file" / "demo", DemoSpec.tiny())


def test_a_full_disk_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_free_bytes", lambda folder: 1000)
    with pytest.raises(CheckpointError, match=r"takes \d+ bytes, 1000 are free"):
        write_demo(tmp_path / "demo", DemoSpec.tiny())
    assert list(tmp_path.iterdir()) == []


STREAMED = """
import sys
from pathlib import Path
from moonshard_cluster.demo.checkpoint import write_demo
from moonshard_cluster.demo.spec import DemoSpec
spec = DemoSpec(
    hidden_size=7168, num_hidden_layers=2, num_attention_heads=64, q_lora_rank=1536, kv_lora_rank=512,
    qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, n_routed_experts=16, num_experts_per_tok=8,
    moe_intermediate_size=2048, intermediate_size=4096, vocab_size=16384,
)
write_demo(Path(sys.argv[1]), spec)
assert "torch" not in sys.modules
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")).split()[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_writing_a_gigabyte_takes_little_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STREAMED, str(tmp_path / "wide")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert sum(path.stat().st_size for path in (tmp_path / "wide").iterdir()) > 1_000_000_000
    assert int(done.stdout) * 1024 < 150_000_000
