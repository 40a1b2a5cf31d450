"""Random checkpoints of tiny models in the published format, written with safetensors' own writer.

`write_checkpoint` makes a directory; `tensors` gives the same tensors in memory, for tests that break some. Projections
back into the residual stream are calm (0.15 of the others), so that no near-tie in a gate decides a comparison.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from moonshard.model import int4
from moonshard.model.config import ModelConfig
from moonshard.model.inventory import TensorSpec, expected_tensors

CALM = 0.15
INT4_BLOCK: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "kv_cache_scheme": None,
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "input_activations": None,
            "output_activations": None,
            "weights": {
                "num_bits": 4,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": 32,
                "dynamic": False,
                "actorder": None,
                "observer": "minmax",
            },
        }
    },
}


def kimi_text(**changes: Any) -> dict[str, Any]:
    """A text config like K2.5's at small size: yarn, one group, one dense layer."""
    return {
        "model_type": "kimi_k2",
        "architectures": ["DeepseekV3ForCausalLM"],
        "vocab_size": 384,
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "intermediate_size": 192,
        "moe_intermediate_size": 64,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.827,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 48,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "attention_bias": False,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 50000.0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 64.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "num_nextn_predict_layers": 0,
        "bos_token_id": 380,
        "eos_token_id": 381,
        "pad_token_id": 383,
        **changes,
    }


def deepseek_text(**changes: Any) -> dict[str, Any]:
    """A config like DeepSeek-V3's at small size: expert groups, other head widths, two dense layers, other yarn."""
    return kimi_text(
        **{
            "model_type": "deepseek_v3",
            "hidden_size": 96,
            "num_hidden_layers": 4,
            "first_k_dense_replace": 2,
            "intermediate_size": 160,
            "moe_intermediate_size": 32,
            "n_routed_experts": 24,
            "n_shared_experts": 2,
            "n_group": 6,
            "topk_group": 3,
            "routed_scaling_factor": 2.5,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "q_lora_rank": 40,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 24,
            "qk_rope_head_dim": 8,
            "v_head_dim": 20,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 40.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 32,
                "beta_slow": 1,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
            },
            **changes,
        }
    )


def wrapped(text: dict[str, Any], quantized: bool = True) -> dict[str, Any]:
    """The K2.5 wrapper around a text config, with INT4 experts unless told otherwise; no vision."""
    inner = {**text, "quantization_config": INT4_BLOCK} if quantized else text
    ids = {name: text[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {
        "architectures": ["KimiK25ForConditionalGeneration"],
        "model_type": "kimi_k25",
        "dtype": "bfloat16",
        "tie_word_embeddings": False,
        **ids,
        "text_config": inner,
    }


def plain(text: dict[str, Any], quantized: bool = False) -> dict[str, Any]:
    """The plain form of K2-Thinking (INT4) and of checkpoints without quantisation."""
    return {**text, "quantization_config": INT4_BLOCK} if quantized else text


def tensors(raw_config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Every text tensor of a configuration, by published name."""
    config = ModelConfig.from_json(raw_config)
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for spec in expected_tensors(config):
        if spec.role != "vision" and spec.name not in made:
            made |= _made(spec, generator)
    return made


def _made(spec: TensorSpec, generator: torch.Generator) -> dict[str, Tensor]:
    """The tensor of a spec; a packed one brings its scale and shape along."""

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(shape, generator=generator) * std

    if spec.name.endswith("layernorm.weight") or spec.name.endswith(".norm.weight"):
        return {spec.name: (1 + normal(*spec.shape, std=0.1)).to(torch.bfloat16)}
    if spec.name.endswith("e_score_correction_bias"):
        return {spec.name: normal(*spec.shape, std=0.05)}
    calm = CALM if spec.name.split(".")[-2] in ("o_proj", "down_proj") else 1.0
    if spec.name.endswith("weight_packed"):
        rows, columns = spec.shape[0], spec.shape[1] * 8
        packed, scale = int4.quantise(normal(rows, columns, std=calm * columns**-0.5))
        stem = spec.name.removesuffix("packed")
        return {spec.name: packed, f"{stem}scale": scale, f"{stem}shape": torch.tensor([rows, columns]).int()}
    std = 1.0 if "embed_tokens" in spec.name else calm * spec.shape[-1] ** -0.5
    return {spec.name: normal(*spec.shape, std=std).to(torch.bfloat16)}


def save(
    path: Path, raw_config: Mapping[str, Any], named: Mapping[str, Tensor], num_files: int = 2
) -> dict[str, dict[str, Tensor]]:
    """Write config.json, safetensors files and the index; returns what went into each file.

    num_files 0 writes a single model.safetensors without an index.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(raw_config))
    if num_files == 0:
        save_file(dict(named), path / "model.safetensors")
        return {"model.safetensors": dict(named)}
    names = list(named)
    per_file = -(-len(names) // num_files)
    files = {
        f"model-{i + 1:05d}-of-{num_files:06d}.safetensors": {n: named[n] for n in names[i * per_file :][:per_file]}
        for i in range(num_files)
    }
    for file, content in files.items():
        save_file(content, path / file, metadata={"format": "pt"})
    weight_map = {name: file for file, content in files.items() for name in content}
    total = sum(tensor.nbytes for tensor in named.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return files


def write_checkpoint(path: Path, raw_config: Mapping[str, Any], seed: int = 0, num_files: int = 2) -> Path:
    """A complete random checkpoint; returns `path`."""
    save(path, raw_config, tensors(raw_config, seed), num_files)
    return path


def dequantised(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights in FP32 without packing and without the language_model prefix."""
    result: dict[str, Tensor] = {}
    for published, tensor in named.items():
        name = published.removeprefix("language_model.")
        if name.endswith("weight_packed"):
            scale = named[published.removesuffix("_packed") + "_scale"]
            result[name.removesuffix("_packed")] = int4.dequantise(tensor, scale)
        elif not name.endswith(("weight_scale", "weight_shape")):
            result[name] = tensor.float()
    return result
