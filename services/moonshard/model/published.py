"""Where a published config.json keeps the fields of ModelConfig: wrapper and plain form, both yarn spellings.

Knows the published spellings and the quantisation formats; checks no ranges (config.py does). Imports no torch.
"""

from collections.abc import Mapping
from typing import Any

from moonshard.errors import ConfigError

_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "first_k_dense_replace",
    "moe_layer_freq",
    "intermediate_size",
    "moe_intermediate_size",
    "n_routed_experts",
    "num_experts_per_tok",
    "n_shared_experts",
    "n_group",
    "topk_group",
    "routed_scaling_factor",
    "norm_topk_prob",
    "scoring_func",
    "topk_method",
    "hidden_act",
    "attention_bias",
    "tie_word_embeddings",
    "num_attention_heads",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
    "num_nextn_predict_layers",
)
_OPTIONAL = (
    "moe_layer_freq",
    "scoring_func",
    "topk_method",
    "hidden_act",
    "attention_bias",
    "tie_word_embeddings",
    "num_nextn_predict_layers",
)
_YARN_FIELDS = (
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "truncate",
)
# Published name first, then the one of transformers >= 5 (specification 1.3).
_VISION_FIELDS = {
    "patch_size": ("patch_size",),
    "vt_hidden_size": ("vt_hidden_size", "hidden_size"),
    "vt_num_hidden_layers": ("vt_num_hidden_layers", "num_hidden_layers"),
    "vt_intermediate_size": ("vt_intermediate_size", "intermediate_size"),
    "init_pos_emb_height": ("init_pos_emb_height", "pos_emb_height"),
    "init_pos_emb_width": ("init_pos_emb_width", "pos_emb_width"),
    "merge_kernel_size": ("merge_kernel_size",),
}
_PUBLISHED_KEYS = {"rope": "rope_scaling", "vision": "vision_config", "eos_token_ids": "eos_token_id"}
_TEXT_MODEL_TYPES = ("kimi_k2", "deepseek_v3")
# K2's vocabulary: chat turns end with <|im_end|>, config.json names [EOS] only (specification 1.1).
KIMI_VOCAB_SIZE = 163_840
KIMI_END_TOKENS = (163_586, 163_585)


def published_key(field: str) -> str:
    """How config.json spells a field of ModelConfig."""
    return _PUBLISHED_KEYS.get(field, field)


def text_section(raw: Mapping[str, Any]) -> str:
    """`text_config.` in the wrapper form, else nothing: what error messages put before a field."""
    return "text_config." if "text_config" in raw else ""


def model_values(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ModelConfig as plain values. Raises ConfigError for forms that are not known."""
    section = text_section(raw)
    text = _object(raw, "text_config", "") if section else raw
    _check_model_type(text, section)
    values = {name: text[name] for name in _TEXT_FIELDS if text.get(name) is not None or _required(name, text)}
    if "num_mtp_layers" in text and "num_nextn_predict_layers" not in values:
        values["num_nextn_predict_layers"] = text["num_mtp_layers"]
    values |= _rope(text, section)
    kind = _quantization_kind(text if "quantization_config" in text else raw, section)
    values |= {"quantization_kind": kind, "quantization": {} if kind == "int4" else None}
    values["name_prefix"] = "language_model." if section else ""
    values |= _token_ids(raw, text, generation)
    if raw.get("vision_config") is not None:
        values["vision"] = _vision(_object(raw, "vision_config", ""))
    return values


def _required(name: str, text: Mapping[str, Any]) -> bool:
    """Whether a null is kept, for the type check to refuse it by name."""
    return name in text and name not in _OPTIONAL


def _object(raw: Mapping[str, Any], key: str, section: str) -> Mapping[str, Any]:
    value = raw[key]
    if not isinstance(value, dict):
        raise ConfigError(section + key, f"must be an object, got {value!r}")
    return value


def _check_model_type(text: Mapping[str, Any], section: str) -> None:
    found = text.get("model_type")
    if found not in _TEXT_MODEL_TYPES:
        raise ConfigError(f"{section}model_type", f"must be one of {', '.join(_TEXT_MODEL_TYPES)}, got {found!r}")


def _rope(text: Mapping[str, Any], section: str) -> dict[str, Any]:
    """rope_theta and the yarn block, from rope_scaling or from the rope_parameters of transformers >= 5."""
    key = "rope_parameters" if text.get("rope_parameters") is not None else "rope_scaling"
    block = _object(text, key, section) if text.get(key) is not None else {}
    values: dict[str, Any] = {"rope": None}
    if (theta := block.get("rope_theta", text.get("rope_theta"))) is not None:
        values["rope_theta"] = theta
    kind = block.get("rope_type", block.get("type", "default"))
    if kind == "yarn":
        values["rope"] = {name: block[name] for name in _YARN_FIELDS if block.get(name) is not None}
    elif kind != "default":
        raise ConfigError(f"{section}{key}.type", f"must be yarn or default, got {kind!r}")
    return values


def _quantization_kind(holder: Mapping[str, Any], section: str) -> str:
    """`none`, `int4`, or a short description of a format that cannot be loaded."""
    if holder.get("quantization_config") is None:
        return "none"
    block = _object(holder, "quantization_config", section)
    method = block.get("quant_method")
    if method != "compressed-tensors":
        return str(method)
    groups = block.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        return f"compressed-tensors {block.get('format')} without exactly one of config_groups"
    group = next(iter(groups.values()))
    weights = group.get("weights") if isinstance(group, dict) else None
    return _compressed_kind(str(block.get("format")), weights if isinstance(weights, dict) else {})


def _compressed_kind(format_: str, weights: Mapping[str, Any]) -> str:
    known = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    differing = [f"{key} {weights.get(key)!r}" for key, value in known.items() if weights.get(key) != value]
    if weights.get("actorder"):
        differing.append(f"actorder {weights['actorder']!r}")
    if format_ == "pack-quantized" and not differing:
        return "int4"
    return " ".join(["compressed-tensors", format_, *differing])


def _token_ids(raw: Mapping[str, Any], text: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    """Ends of a turn from every file that names one, each id once, generation_config.json's first."""
    ends: list[Any] = []
    for holder in (generation, raw, text):
        value = holder.get("eos_token_id")
        ends += value if isinstance(value, list) else [] if value is None else [value]
    if text.get("vocab_size") == KIMI_VOCAB_SIZE:
        ends += KIMI_END_TOKENS
    values: dict[str, Any] = {"eos_token_ids": tuple(dict.fromkeys(map(_hashable, ends)))}
    for name in ("bos_token_id", "pad_token_id"):
        values[name] = raw.get(name, text.get(name))
    return values


def _hashable(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else repr(value)


def _vision(block: Mapping[str, Any]) -> dict[str, Any]:
    values = {}
    for field, names in _VISION_FIELDS.items():
        found = [block[name] for name in names if name in block]
        if found:
            values[field] = tuple(found[0]) if isinstance(found[0], list) else found[0]
    return values
