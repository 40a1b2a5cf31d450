"""Attention of training: rows of several documents, each seeing itself only; each head's largest logit is kept.

Legend: B rows, S tokens of a row, T = B * S, H heads, N no-rope dims, R rope dims, V value dims, C cached width.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from moonshard.model.mla import MLA


@dataclass(slots=True)
class PackedAttention:
    """`hidden_BSS` is True where a query must not see a key. `max_logits_H` is filled by layer during a pass."""

    hidden_BSS: Tensor
    max_logits: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def over(cls, documents_BS: Tensor) -> "PackedAttention":
        """Documents are numbered within a row."""
        length = documents_BS.shape[1]
        future_SS = torch.ones(length, length, dtype=torch.bool).triu(1)
        return cls((documents_BS.unsqueeze(2) != documents_BS.unsqueeze(1)) | future_SS)

    def attend(self, layer: int, mla: MLA, q_nope_THN: Tensor, q_pe_THR: Tensor, latent_TC: Tensor) -> Tensor:
        c, rows = mla.config, len(self.hidden_BSS)
        q_BHSQ = torch.unflatten(torch.cat((q_nope_THN, q_pe_THR), -1), 0, (rows, -1)).transpose(1, 2)
        latent, k_pe_TR = latent_TC.split_with_sizes((c.kv_lora_rank, c.qk_rope_head_dim), -1)
        kv_THO = torch.unflatten(mla.kv_b(latent), -1, (c.num_attention_heads, -1))
        k_nope_THN, v_THV = kv_THO.split_with_sizes((c.qk_nope_head_dim, c.v_head_dim), -1)
        k_THQ = torch.cat((k_nope_THN, k_pe_TR.unsqueeze(1).expand(-1, c.num_attention_heads, -1)), -1)
        k_BHSQ, v_BHSV = (torch.unflatten(x, 0, (rows, -1)).transpose(1, 2) for x in (k_THQ, v_THV))
        scores_BHSS = (q_BHSQ * c.softmax_scale) @ k_BHSQ.mT
        scores_BHSS = scores_BHSS.masked_fill(self.hidden_BSS.unsqueeze(1), -torch.inf)
        self.max_logits[layer] = scores_BHSS.detach().amax((0, 2, 3))
        o_BHSV: Tensor = scores_BHSS.softmax(-1) @ v_BHSV
        return o_BHSV.transpose(1, 2).flatten(0, 1)
