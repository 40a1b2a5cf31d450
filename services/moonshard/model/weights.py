"""The tensors an attention worker holds, and which published tensor fills which part of them.

Stacked where one product can do the work of two: q_a on kv_a, gate on up. Norms, gate weights and biases included;
no routed expert, no vision.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

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


class StreamedWeights:
    """The same tensors as `load_weights`, each read from the checkpoint when it is asked for and not kept: whoever
    repacks them holds one layer at a time twice. Raises CheckpointError before any weight is read.

    The checkpoint stays open for as long as this is used. progress: as in `load_weights`, over everything.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, progress: Progress | None = None) -> None:
        specs = list(attention_tensors(checkpoint.config))
        checkpoint.check(specs)
        self._checkpoint, self._dtype, self._progress = checkpoint, dtype, progress
        self._specs = {plain_name(spec.name): spec for spec in specs}
        self._total, self._loaded = sum(prod(s.shape) * checkpoint.stored_dtype(s).itemsize for s in specs), 0

    @property
    def embedding(self) -> Tensor:
        return self._matrix("model.embed_tokens.weight")

    @property
    def norm(self) -> Tensor:
        return self._matrix("model.norm.weight")

    @property
    def head(self) -> Tensor:
        return self._matrix("lm_head.weight")

    @property
    def layers(self) -> Iterator[LayerWeights]:
        config = self._checkpoint.config
        for index in range(config.num_hidden_layers):
            layer = allocate_layer(config, index, self._dtype, "cpu")
            self._read({f"model.layers.{index}.{name}": part for name, part in _layer_parts(config, layer)})
            yield layer

    def _matrix(self, name: str) -> Tensor:
        tensor = torch.empty(self._specs[name].shape, dtype=self._dtype)
        self._read({name: tensor})
        return tensor

    def _read(self, parts: dict[str, Tensor]) -> None:
        before = self._loaded

        def advance(loaded: int, _: int) -> None:
            self._loaded = before + loaded
            if self._progress:
                self._progress(self._loaded, self._total)

        self._checkpoint.read([Read(self._specs[name], part) for name, part in parts.items()], advance)


def allocate(config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> DecoderWeights:
    """Uninitialised tensors of the right shapes."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    return DecoderWeights(
        embedding=empty(config.vocab_size, config.hidden_size),
        layers=tuple(allocate_layer(config, index, dtype, device) for index in range(config.num_hidden_layers)),
        norm=empty(config.hidden_size),
        head=empty(config.vocab_size, config.hidden_size),
    )


def allocate_layer(c: ModelConfig, index: int, dtype: torch.dtype, device: torch.device | str) -> LayerWeights:
    """Uninitialised tensors of one layer."""

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    heads, moe = c.num_attention_heads, c.is_moe(index)
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
        gate=empty(c.n_routed_experts, c.hidden_size, dtype=torch.float32) if moe else None,
        gate_bias=empty(c.n_routed_experts, dtype=torch.float32) if moe else None,
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
