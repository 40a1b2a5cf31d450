"""Every tensor a checkpoint of a configuration holds: published name, shape, dtype and who needs it.

Source: specification section 3. Shapes are [out, in]. Imports no torch, reads no file.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

from moonshard.errors import ConfigError
from moonshard.model.config import ModelConfig, VisionConfig

Role = Literal["attention", "expert", "vision"]
DTYPE_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I64": 8, "F8_E4M3": 1}
_FP8_BLOCK = 128
EXPERT_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class TensorSpec(NamedTuple):
    """`name` as published; `dtype` in safetensors' spelling; `layer` and `expert` are None where they do not apply."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    layer: int | None = None
    expert: int | None = None

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Summary:
    """What `moonshard inspect` prints. Parameters count weights, not packed words or scales; sizes in bytes."""

    num_tensors: int
    num_parameters: int
    parameters_by_role: dict[str, int]
    bytes_by_role: dict[str, int]
    total_bytes: int
    num_shards: int
    experts_per_shard: int
    expert_bytes_per_shard: int
    bytes_per_expert: int
    kv_bytes_per_token: int


def plain_name(name: str) -> str:
    """A tensor's name without prefix, aliases resolved: `model.layers.0...`, `lm_head.weight`, `vision_tower...`.

    Accepts `language_model.model.`, `language_model.` and `model.` forms (specification section 3).
    """
    name = name.removeprefix("language_model.")
    return name if not name.startswith(("layers.", "embed_tokens.", "norm.")) else f"model.{name}"


def is_ignorable(name: str, config: ModelConfig) -> bool:
    """Whether a tensor (plain name) outside the inventory is legal: vision, rope leftovers, the MTP layers."""
    if name.startswith(("vision_tower.", "mm_projector.")) or ".rotary_emb." in name:
        return True
    parts = name.split(".")
    if len(parts) < 3 or parts[:2] != ["model", "layers"] or not (parts[2].isdecimal() and len(parts[2]) < 9):
        return False
    return 0 <= int(parts[2]) - config.num_hidden_layers < config.num_nextn_predict_layers


def expected_tensors(config: ModelConfig) -> Iterator[TensorSpec]:
    """All tensors of the checkpoint, text first. Raises ConfigError for a weight format that is not known.

    FP8 checkpoints (K2-Instruct, DeepSeek-V3) are listed, so that they can be inspected, but cannot be loaded.
    """
    if config.quantization_kind == "fp8":
        yield from _in_fp8(_text_tensors(config))
    else:
        config.require_loadable()
        yield from _text_tensors(config)
    if config.vision:
        yield from vision_tensors(config.vision, config.hidden_size)


def _text_tensors(config: ModelConfig) -> Iterator[TensorSpec]:
    yield from attention_tensors(config)
    for layer in config.moe_layers:
        for expert in range(config.n_routed_experts):
            yield from expert_tensors(config, layer, expert)


def _in_fp8(specs: Iterator[TensorSpec]) -> Iterator[TensorSpec]:
    """DeepSeek's FP8 form: the Linears of the layers in E4M3, each with FP32 scales of 128 x 128 blocks."""
    for spec in specs:
        if len(spec.shape) < 2 or spec.layer is None or spec.name.endswith("mlp.gate.weight"):
            yield spec
            continue
        yield spec._replace(dtype="F8_E4M3")
        blocks = tuple(-(-size // _FP8_BLOCK) for size in spec.shape)
        yield spec._replace(name=f"{spec.name}_scale_inv", shape=blocks, dtype="F32")


def attention_tensors(config: ModelConfig) -> Iterator[TensorSpec]:
    """Everything but routed experts and vision: what an attention worker loads."""
    prefix = config.name_prefix
    embedding = (config.vocab_size, config.hidden_size)
    yield TensorSpec(f"{prefix}model.embed_tokens.weight", embedding, "BF16", "attention")
    for layer in range(config.num_hidden_layers):
        for name, shape, dtype in _layer_tensors(config, layer):
            yield TensorSpec(f"{prefix}model.layers.{layer}.{name}", shape, dtype, "attention", layer)
    yield TensorSpec(f"{prefix}model.norm.weight", (config.hidden_size,), "BF16", "attention")
    yield TensorSpec(f"{prefix}lm_head.weight", embedding, "BF16", "attention")


def _layer_tensors(c: ModelConfig, layer: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    heads, hidden = c.num_attention_heads, c.hidden_size
    yield "input_layernorm.weight", (hidden,), "BF16"
    yield "post_attention_layernorm.weight", (hidden,), "BF16"
    yield "self_attn.q_a_proj.weight", (c.q_lora_rank, hidden), "BF16"
    yield "self_attn.q_a_layernorm.weight", (c.q_lora_rank,), "BF16"
    yield "self_attn.q_b_proj.weight", (heads * c.qk_head_dim, c.q_lora_rank), "BF16"
    yield "self_attn.kv_a_proj_with_mqa.weight", (c.latent_dim, hidden), "BF16"
    yield "self_attn.kv_a_layernorm.weight", (c.kv_lora_rank,), "BF16"
    yield "self_attn.kv_b_proj.weight", (heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank), "BF16"
    yield "self_attn.o_proj.weight", (hidden, heads * c.v_head_dim), "BF16"
    if not c.is_moe(layer):
        yield from _swiglu("mlp", hidden, c.intermediate_size)
        return
    yield "mlp.gate.weight", (c.n_routed_experts, hidden), "BF16"
    yield "mlp.gate.e_score_correction_bias", (c.n_routed_experts,), "F32"
    yield from _swiglu("mlp.shared_experts", hidden, c.shared_intermediate_size)


def _swiglu(name: str, hidden: int, width: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    yield f"{name}.gate_proj.weight", (width, hidden), "BF16"
    yield f"{name}.up_proj.weight", (width, hidden), "BF16"
    yield f"{name}.down_proj.weight", (hidden, width), "BF16"


def expert_tensors(config: ModelConfig, layer: int, expert: int) -> Iterator[TensorSpec]:
    """One routed expert: packed words, scales and shape of each projection, or its BF16 weights."""
    prefix = f"{config.name_prefix}model.layers.{layer}.mlp.experts.{expert}"
    for projection in EXPERT_PROJECTIONS:
        for suffix, shape, dtype in projection_tensors(config, projection):
            yield TensorSpec(f"{prefix}.{projection}.{suffix}", shape, dtype, "expert", layer, expert)


def projection_tensors(config: ModelConfig, projection: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """(suffix, shape, dtype) of the stored tensors of one projection of an expert (specification 4.2)."""
    rows, columns = projection_shape(config, projection)
    if config.quantization is None:
        yield "weight", (rows, columns), "BF16"
        return
    yield "weight_packed", (rows, columns // 8), "I32"
    yield "weight_scale", (rows, columns // config.quantization.group_size), "BF16"
    yield "weight_shape", (2,), "I32"


def projection_shape(config: ModelConfig, projection: str) -> tuple[int, int]:
    """(out, in) of one projection of a routed expert."""
    width, hidden = config.moe_intermediate_size, config.hidden_size
    return (hidden, width) if projection == "down_proj" else (width, hidden)


def vision_tensors(v: VisionConfig, text_hidden_size: int) -> Iterator[TensorSpec]:
    """Vision tower and projector. Names carry no prefix in either form."""
    for name, shape in _vision_shapes(v, text_hidden_size):
        yield TensorSpec(name, shape, "BF16", "vision")


def _vision_shapes(v: VisionConfig, text_hidden_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, merged = v.vt_hidden_size, prod(v.merge_kernel_size) * v.vt_hidden_size
    yield from _affine("vision_tower.patch_embed.proj", (width, 3, v.patch_size, v.patch_size))
    yield "vision_tower.patch_embed.pos_emb.weight", (v.init_pos_emb_height, v.init_pos_emb_width, width)
    for block in range(v.vt_num_hidden_layers):
        prefix = f"vision_tower.encoder.blocks.{block}"
        yield from _affine(f"{prefix}.norm0", (width,))
        yield from _affine(f"{prefix}.norm1", (width,))
        yield from _affine(f"{prefix}.wqkv", (3 * width, width))
        yield from _affine(f"{prefix}.wo", (width, width))
        yield from _affine(f"{prefix}.mlp.fc0", (v.vt_intermediate_size, width))
        yield from _affine(f"{prefix}.mlp.fc1", (width, v.vt_intermediate_size))
    yield from _affine("vision_tower.encoder.final_layernorm", (width,))
    yield from _affine("mm_projector.pre_norm", (width,))
    yield from _affine("mm_projector.proj.0", (merged, merged))
    yield from _affine("mm_projector.proj.2", (text_hidden_size, merged))


def _affine(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def summarise(config: ModelConfig, num_shards: int = 8) -> Summary:
    """Totals over `expected_tensors`. Raises ConfigError when num_shards does not divide the experts."""
    if num_shards < 1 or config.n_routed_experts % num_shards:
        raise ConfigError("num_shards", f"must divide the model's {config.n_routed_experts} experts, got {num_shards}")
    num_bytes, parameters = Counter[str](), Counter[str]()
    num_tensors = 0
    for spec in expected_tensors(config):
        num_tensors += 1
        num_bytes[spec.role] += spec.num_bytes
        parameters[spec.role] += _num_weights(spec)
    return Summary(
        num_tensors=num_tensors,
        num_parameters=parameters.total(),
        parameters_by_role=dict(parameters),
        bytes_by_role=dict(num_bytes),
        total_bytes=num_bytes.total(),
        num_shards=num_shards,
        experts_per_shard=config.n_routed_experts // num_shards,
        expert_bytes_per_shard=num_bytes["expert"] // num_shards,
        bytes_per_expert=num_bytes["expert"] // max(1, config.n_routed_experts * len(config.moe_layers)),
        kv_bytes_per_token=config.kv_bytes_per_token(),
    )


def _num_weights(spec: TensorSpec) -> int:
    if spec.name.endswith(("weight_scale", "weight_shape", "weight_scale_inv")):
        return 0
    return prod(spec.shape) * (8 if spec.name.endswith("weight_packed") else 1)
