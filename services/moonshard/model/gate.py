"""The router of one MoE layer (specification 2.5), FP32 throughout.

Legend: T rows, D hidden size, E experts, G groups, K experts per token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from moonshard.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Gate:
    """`weight_ED` and `bias_E` (e_score_correction_bias, for selection only) are FP32."""

    config: ModelConfig
    weight_ED: Tensor
    bias_E: Tensor

    def __call__(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """(topk_ids_TK int32, topk_weights_TK FP32), best first; of equal scores the lower id wins."""
        c = self.config
        scores_TE = functional.linear(x_TD.float(), self.weight_ED).sigmoid()
        choice_TE = scores_TE + self.bias_E
        if c.n_group > 1:
            choice_TE = _keep_best_groups(choice_TE, c.n_group, c.topk_group)
        ids_TK = _best(choice_TE, c.num_experts_per_tok)
        weights_TK = scores_TE.gather(1, ids_TK)
        if c.norm_topk_prob:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        return ids_TK.to(torch.int32), weights_TK * c.routed_scaling_factor


def _keep_best_groups(choice_TE: Tensor, num_groups: int, num_kept: int) -> Tensor:
    """-inf outside the groups whose two best experts score highest together."""
    choice_TGE = torch.unflatten(choice_TE, -1, (num_groups, -1))
    group_scores_TG = choice_TGE.topk(2, -1).values.sum(-1)
    dropped_TG = torch.ones_like(group_scores_TG, dtype=torch.bool).scatter_(1, _best(group_scores_TG, num_kept), False)
    return choice_TGE.masked_fill(dropped_TG.unsqueeze(-1), -torch.inf).flatten(1)


def _best(scores_TX: Tensor, count: int) -> Tensor:
    """Places of the best in each row, best first; of equal scores the lower place wins."""
    # topk leaves the order of equal scores open; a stable sort does not, but takes five times as long.
    found = scores_TX.topk(min(count + 1, scores_TX.shape[-1]), -1)
    is_tied = (found.values[:, :-1] == found.values[:, 1:]) | found.values[:, :-1].isnan()
    if bool(is_tied.any()):
        return torch.argsort(scores_TX, dim=-1, descending=True, stable=True)[:, :count]
    return found.indices[:, :count]
