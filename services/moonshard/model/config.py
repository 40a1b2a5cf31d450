"""What a checkpoint's config.json says about the model, checked and frozen. Imports no torch.

Fields keep the published names (specification section 1). `published.py` finds them in the K2.5 wrapper (with
`text_config`) and in the plain form of K2, K2-Thinking and DeepSeek-V3, in both spellings of the yarn block.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moonshard.errors import ConfigError
from moonshard.model import published

Size = Annotated[int, Field(ge=1, le=2**24)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**24)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class YarnConfig(_Frozen):
    """The yarn block. Defaults are those of DeepSeek's code for absent keys."""

    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    original_max_position_embeddings: Size
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    mscale: NotNegative = 1.0
    mscale_all_dim: NotNegative = 0.0
    attention_factor: Positive | None = None
    truncate: bool = True

    @property
    def cos_sin_scale(self) -> float:
        """Multiplier of cos and sin; 1.0 when mscale equals mscale_all_dim (specification 2.4)."""
        if self.attention_factor is not None:
            return self.attention_factor
        return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)

    @property
    def softmax_multiplier(self) -> float:
        """Square of the length correction, part of the softmax scale (specification 2.2)."""
        return self._mscale(self.mscale_all_dim) ** 2

    def _mscale(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0


class Int4Config(_Frozen):
    """Packed INT4 experts: symmetric, `group_size` inputs share a scale (specification 4.1)."""

    group_size: Literal[32] = 32


class VisionConfig(_Frozen):
    """What the inventory needs of the vision tower and the projector (specification 1.3)."""

    patch_size: Size
    vt_hidden_size: Size
    vt_num_hidden_layers: Size
    vt_intermediate_size: Size
    init_pos_emb_height: Size
    init_pos_emb_width: Size
    merge_kernel_size: tuple[Size, Size]


class ModelConfig(_Frozen):
    """One model. Construct with `from_dir` or `from_json`; both raise ConfigError naming field and value."""

    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Annotated[int, Field(ge=1, le=10_000)]
    first_k_dense_replace: Annotated[int, Field(ge=0, le=10_000)]
    moe_layer_freq: Size = 1
    intermediate_size: Size
    moe_intermediate_size: Size
    n_routed_experts: Annotated[int, Field(ge=1, le=2**16)]
    num_experts_per_tok: Annotated[int, Field(ge=1, le=1024)]
    n_shared_experts: Size
    n_group: Size
    topk_group: Size
    routed_scaling_factor: Positive
    norm_topk_prob: bool
    scoring_func: Literal["sigmoid"] = "sigmoid"
    topk_method: Literal["noaux_tc"] = "noaux_tc"
    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False
    tie_word_embeddings: Literal[False] = False
    num_attention_heads: Annotated[int, Field(ge=1, le=2**16)]
    q_lora_rank: Size
    kv_lora_rank: Size
    qk_nope_head_dim: Size
    qk_rope_head_dim: Size
    v_head_dim: Size
    rms_norm_eps: Annotated[float, Field(gt=0, lt=1)]
    rope_theta: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    rope: YarnConfig | None = None
    max_position_embeddings: Annotated[int, Field(ge=1, le=2**32)]
    num_nextn_predict_layers: Annotated[int, Field(ge=0, le=1000)] = 0
    quantization: Int4Config | None = None
    quantization_kind: str = "none"
    name_prefix: Literal["", "language_model."] = ""
    bos_token_id: TokenId | None = None
    eos_token_ids: tuple[TokenId, ...] = ()
    pad_token_id: TokenId | None = None
    vision: VisionConfig | None = None

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> Self:
        """From the parsed config.json and, when the checkpoint has one, generation_config.json."""
        values = published.model_values(raw, generation or {})
        section = published.text_section(raw)
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            raise _first_problem(section, error) from None
        for field, problem in _disagreements(config):
            raise ConfigError(section + field, problem)
        return config

    @classmethod
    def from_dir(cls, path: Path) -> Self:
        """From a checkpoint directory."""
        generation = path / "generation_config.json"
        return cls.from_json(_read_json(path / "config.json"), _read_json(generation) if generation.exists() else None)

    @property
    def has_vision(self) -> bool:
        return self.vision is not None

    @cached_property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the MoE layers (K2.5: 1..60)."""
        return tuple(layer for layer in range(self.num_hidden_layers) if self.is_moe(layer))

    def is_moe(self, layer: int) -> bool:
        return layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Values cached per token and layer: latent and rope key (K2.5: 576)."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """K2.5: 0.14467962580268923 (specification 2.2)."""
        return float(self.qk_head_dim**-0.5 * (self.rope.softmax_multiplier if self.rope else 1.0))

    @property
    def shared_intermediate_size(self) -> int:
        return self.n_shared_experts * self.moe_intermediate_size

    def kv_bytes_per_token(self, dtype_bytes: int = 2) -> int:
        """Bytes of latent KV cache a token takes over all layers (K2.5 in BF16: 70272)."""
        return self.num_hidden_layers * self.latent_dim * dtype_bytes

    @property
    def checkpoint_id(self) -> str:
        """Fingerprint of the configuration: 16 hex digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def require_loadable(self) -> None:
        """Raises ConfigError when the weights are in a format that cannot be loaded."""
        if self.quantization_kind not in ("none", "int4"):
            raise ConfigError(
                "quantization_config",
                f"{self.quantization_kind} weights are not supported; "
                "supported are INT4 (compressed-tensors pack-quantized, symmetric, groups of 32) and plain BF16",
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(path.name, f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(path.name, f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(path.name, f"must be a JSON object, got {type(value).__name__}")
    return value


def _first_problem(section: str, error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    path = [published.published_key(str(part)) for part in first["loc"]]
    key = ("" if path[0] == "vision_config" else section) + ".".join(path)
    if first["type"] == "missing":
        return ConfigError(key, "is required")
    return ConfigError(key, f"{first['msg']}, got {first['input']!r}")


def _disagreements(c: ModelConfig) -> list[tuple[str, str]]:
    """Fields that are valid alone but not together: (field, problem)."""
    allowed = c.n_routed_experts // c.n_group * c.topk_group
    checks = [
        (
            c.num_experts_per_tok <= c.n_routed_experts,
            "num_experts_per_tok",
            f"must be at most n_routed_experts {c.n_routed_experts}, got {c.num_experts_per_tok}",
        ),
        (
            c.n_routed_experts % c.n_group == 0,
            "n_group",
            f"must divide n_routed_experts {c.n_routed_experts}, got {c.n_group}",
        ),
        (c.topk_group <= c.n_group, "topk_group", f"must be at most n_group {c.n_group}, got {c.topk_group}"),
        (
            c.num_experts_per_tok <= allowed,
            "num_experts_per_tok",
            f"must be at most {allowed}, the experts of topk_group {c.topk_group} groups, got {c.num_experts_per_tok}",
        ),
        (
            c.n_group == 1 or c.n_routed_experts // c.n_group >= 2,
            "n_group",
            f"must leave at least 2 of {c.n_routed_experts} experts in a group, got {c.n_group}",
        ),
        (
            c.first_k_dense_replace <= c.num_hidden_layers,
            "first_k_dense_replace",
            f"must be at most num_hidden_layers {c.num_hidden_layers}, got {c.first_k_dense_replace}",
        ),
        (c.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim", f"must be even, got {c.qk_rope_head_dim}"),
        *(
            (id_ < c.vocab_size, field, f"must be below vocab_size {c.vocab_size}, got {id_}")
            for field, id_ in _token_ids(c)
        ),
    ]
    if c.quantization:
        for field in ("hidden_size", "moe_intermediate_size"):
            size = getattr(c, field)
            checks.append((size % 32 == 0, field, f"must be a multiple of 32 for INT4 experts, got {size}"))
    return [(field, problem) for holds, field, problem in checks if not holds]


def _token_ids(c: ModelConfig) -> list[tuple[str, int]]:
    ids = [("eos_token_id", id_) for id_ in c.eos_token_ids]
    if c.bos_token_id is not None:
        ids.append(("bos_token_id", c.bos_token_id))
    if c.pad_token_id is not None:
        ids.append(("pad_token_id", c.pad_token_id))
    return ids
