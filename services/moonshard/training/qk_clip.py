"""QK-Clip for MLA (arXiv 2507.20534): heads whose largest attention logit passed a threshold are scaled back.

A head's no-rope query and key rows take the square root of the factor each, its rope query rows the whole factor; the
rope key is shared by all heads and stays. So every logit of the head shrinks by the factor and other heads by nothing.
"""

import torch
from torch import Tensor

from moonshard.model.config import ModelConfig
from moonshard.model.weights import LayerWeights


@torch.no_grad()
def clip_heads(config: ModelConfig, layer: LayerWeights, max_logits_H: Tensor, threshold: float) -> int:
    """Scale the heads of one layer whose largest logit exceeds `threshold`; how many there were."""
    factor_H = (threshold / max_logits_H.clamp(min=threshold)).view(-1, 1, 1)
    heads, nope = config.num_attention_heads, config.qk_nope_head_dim
    q_HQI = layer.q_b.view(heads, config.qk_head_dim, -1)
    k_HOL = layer.kv_b.view(heads, nope + config.v_head_dim, -1)
    q_HQI[:, :nope].mul_(factor_H.sqrt())
    q_HQI[:, nope:].mul_(factor_H)
    k_HOL[:, :nope].mul_(factor_H.sqrt())
    return int((factor_H < 1).sum())
