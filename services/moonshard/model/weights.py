"""The tensors an attention worker holds, and which published tensor fills which part of them.

Stacked where one product can do the work of two: q_a on kv_a, gate on up. Norms, gate weights and biases included;
no routed expert, no vision.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moonshard.model.checkpoint import Checkpoint, Progress, Read
from moonshard.model.config import ModelConfig
from moonshard.model.inventory import attention_tensors, plain_name


@dataclass(frozen=True, slots=True)
class SwiGLUWeights:
    """gate_up [2 * width, D], gate first; down [D, width]."""

    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. `ffn` is the dense MLP or the shared expert; gate tensors (FP32) are None in dense layers."""

    input_norm: Tensor
    post_attention_norm: Tensor
    qkv_a: Tensor
    q_a_norm: Tensor
    q_b: Tensor
    kv_a_norm: Tensor
    kv_b: Tensor
    o: Tensor
    ffn: SwiGLUWeights
    gate: Tensor | None
    gate_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Tensor


def load_weights(
    checkpoint: Checkpoint,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> DecoderWeights:
    """Read the attention role's tensors and nothing else. Raises CheckpointError before any weight is read."""
    specs = list(attention_tensors(checkpoint.config))
    checkpoint.check(specs)
    weights = allocate(checkpoint.config, dtype, device)
    parts = dict(destinations(checkpoint.config, weights))
    checkpoint.read([Read(spec, parts[plain_name(spec.name)]) for spec in specs], progress)
    return weights


def allocate(config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> DecoderWeights:
    """Uninitialised tensors of the right shapes."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def layer(index: int) -> LayerWeights:
        c, heads, moe = config, config.num_attention_heads, config.is_moe(index)
        width = c.shared_intermediate_size if moe else c.intermediate_size
        return LayerWeights(
            input_norm=empty(c.hidden_size),
            post_attention_norm=empty(c.hidden_size),
            qkv_a=empty(c.q_lora_rank + c.latent_dim, c.hidden_size),
            q_a_norm=empty(c.q_lora_rank),
            q_b=empty(heads * c.qk_head_dim, c.q_lora_rank),
            kv_a_norm=empty(c.kv_lora_rank),
            kv_b=empty(heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank),
            o=empty(c.hidden_size, heads * c.v_head_dim),
            ffn=SwiGLUWeights(empty(2 * width, c.hidden_size), empty(c.hidden_size, width)),
            gate=empty(c.n_routed_experts, c.hidden_size).float() if moe else None,
            gate_bias=empty(c.n_routed_experts).float() if moe else None,
        )

    return DecoderWeights(
        embedding=empty(config.vocab_size, config.hidden_size),
        layers=tuple(layer(index) for index in range(config.num_hidden_layers)),
        norm=empty(config.hidden_size),
        head=empty(config.vocab_size, config.hidden_size),
    )


def destinations(config: ModelConfig, weights: DecoderWeights) -> Iterator[tuple[str, Tensor]]:
    """(plain name, the part of `weights` it fills) for every tensor of the attention role."""
    yield "model.embed_tokens.weight", weights.embedding
    yield "model.norm.weight", weights.norm
    yield "lm_head.weight", weights.head
    for index, layer in enumerate(weights.layers):
        for name, part in _layer_parts(config, layer):
            yield f"model.layers.{index}.{name}", part


def _layer_parts(config: ModelConfig, layer: LayerWeights) -> Iterator[tuple[str, Tensor]]:
    yield "input_layernorm.weight", layer.input_norm
    yield "post_attention_layernorm.weight", layer.post_attention_norm
    yield "self_attn.q_a_proj.weight", layer.qkv_a[: config.q_lora_rank]
    yield "self_attn.kv_a_proj_with_mqa.weight", layer.qkv_a[config.q_lora_rank :]
    yield "self_attn.q_a_layernorm.weight", layer.q_a_norm
    yield "self_attn.q_b_proj.weight", layer.q_b
    yield "self_attn.kv_a_layernorm.weight", layer.kv_a_norm
    yield "self_attn.kv_b_proj.weight", layer.kv_b
    yield "self_attn.o_proj.weight", layer.o
    prefix = "mlp"
    if layer.gate is not None and layer.gate_bias is not None:
        yield "mlp.gate.weight", layer.gate
        yield "mlp.gate.e_score_correction_bias", layer.gate_bias
        prefix = "mlp.shared_experts"
    width = layer.ffn.down.shape[1]
    yield f"{prefix}.gate_proj.weight", layer.ffn.gate_up[:width]
    yield f"{prefix}.up_proj.weight", layer.ffn.gate_up[width:]
    yield f"{prefix}.down_proj.weight", layer.ffn.down
