"""The fields of K2.5's config.json that are the same at every size (specification 1.1, 1.2, 4.1)."""

from typing import Any

WRAPPER_FIELDS: dict[str, Any] = {
    "architectures": ["KimiK25ForConditionalGeneration"],
    "model_type": "kimi_k25",
    "dtype": "bfloat16",
    "ignore_index": -100,
    "tie_word_embeddings": False,
}

_INT4_GROUP: dict[str, Any] = {
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
        "block_structure": None,
        "observer": "minmax",
        "observer_kwargs": {},
    },
}

_QUANTIZATION: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "kv_cache_scheme": None,
    "config_groups": {"group_0": _INT4_GROUP},
    "ignore": [
        "lm_head",
        "re:.*self_attn.*",
        "re:.*shared_experts.*",
        r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    ],
}

_YARN: dict[str, Any] = {
    "type": "yarn",
    "factor": 64.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}

TEXT_FIELDS: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "kimi_k2",
    "dtype": "bfloat16",
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.827,
    "seq_aux": True,
    "aux_loss_alpha": 0.001,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 50000.0,
    "rope_scaling": _YARN,
    "max_position_embeddings": 262144,
    "num_nextn_predict_layers": 0,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "use_cache": True,
    "ep_size": 1,
    "pretraining_tp": 1,
    "quantization_config": _QUANTIZATION,
}
