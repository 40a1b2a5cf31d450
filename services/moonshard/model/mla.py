"""Multi-head latent attention of one layer, plain and absorbed (specification 2.2, 2.3). Holds no cache.

Legend: T queries, S keys, B sequences, D hidden, H heads, N no-rope dims, R rope dims, V value dims, L latent rank,
C = L + R: what is cached per token, [latent after its norm | rope key after rope, interleaved].

Scores, softmax and sums over keys are FP32 in both forms, whatever the weights' dtype.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moonshard.model.config import ModelConfig
from moonshard.model.layers import Linear, RMSNorm
from moonshard.model.rope import rotate


@dataclass(frozen=True, slots=True)
class MLA:
    """`qkv_a` is q_a_proj stacked on kv_a_proj_with_mqa: [q_lora_rank + C, D]."""

    config: ModelConfig
    qkv_a: Linear
    q_a_layernorm: RMSNorm
    q_b: Linear
    kv_a_layernorm: RMSNorm
    kv_b: Linear
    o: Linear

    def project(self, x_TD: Tensor, rotations_TP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and what to cache: (q_nope_THN, q_pe_THR, latent_TC), rope applied."""
        c = self.config
        q_a, latent, k_pe = self.qkv_a(x_TD).split_with_sizes((c.q_lora_rank, c.kv_lora_rank, c.qk_rope_head_dim), -1)
        q_THQ = torch.unflatten(self.q_b(self.q_a_layernorm(q_a)), -1, (c.num_attention_heads, c.qk_head_dim))
        q_nope_THN, q_pe_THR = q_THQ.split_with_sizes((c.qk_nope_head_dim, c.qk_rope_head_dim), -1)
        latent_TC = torch.cat((self.kv_a_layernorm(latent), rotate(k_pe, rotations_TP)), -1)
        return q_nope_THN, rotate(q_pe_THR, rotations_TP.unsqueeze(1)), latent_TC

    def output(self, o_THV: Tensor) -> Tensor:
        """Heads' outputs to [T, D]."""
        return self.o(o_THV.flatten(1))

    def plain(
        self, q_nope_THN: Tensor, q_pe_THR: Tensor, latent_SC: Tensor, causal_offset: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attention over expanded keys and values: (o_THV in the queries' dtype, lse_TH FP32). S >= 1.

        With an offset query t sees keys s <= causal_offset + t; without, all of them. Several results over parts of
        the keys become one by `merge`. Memory is H * T * S floats: the caller cuts long contexts into parts.
        """
        k_HSQ, v_HSV = self._expand(latent_SC)
        q_HTQ = torch.cat((q_nope_THN, q_pe_THR), -1).float().transpose(0, 1) * self.config.softmax_scale
        scores_HTS = q_HTQ @ k_HSQ.mT
        if causal_offset is not None:
            scores_HTS = scores_HTS.masked_fill(_future(scores_HTS, causal_offset), -torch.inf)
        peak_HT1 = scores_HTS.amax(-1, keepdim=True)
        p_HTS = (scores_HTS - peak_HT1).exp_()
        total_HT1 = p_HTS.sum(-1, keepdim=True)
        o_HTV = p_HTS @ v_HSV / total_HT1
        lse_HT1 = peak_HT1 + total_HT1.log()
        return o_HTV.transpose(0, 1).to(q_nope_THN.dtype), lse_HT1.squeeze(-1).T

    def absorbed(self, q_nope_BHN: Tensor, q_pe_BHR: Tensor, latent_BSC: Tensor, lengths_B: Tensor) -> Tensor:
        """One query per sequence over its first `lengths_B` cached tokens (each >= 1), in latent space: o_BHV."""
        rank = self.config.kv_lora_rank
        w_uk_HNL, w_uv_HVL = self._kv_b_per_head()
        q_latent_BHL = (q_nope_BHN.transpose(0, 1) @ w_uk_HNL).transpose(0, 1)
        q_BHC = torch.cat((q_latent_BHL, q_pe_BHR), -1).float() * self.config.softmax_scale
        cached_BSC = latent_BSC.float()
        scores_BHS = q_BHC @ cached_BSC.mT
        keys_S = torch.arange(latent_BSC.shape[1], device=latent_BSC.device)
        scores_BHS = scores_BHS.masked_fill((keys_S >= lengths_B.unsqueeze(1)).unsqueeze(1), -torch.inf)
        o_BHL = (scores_BHS.softmax(-1) @ cached_BSC[..., :rank]).to(q_nope_BHN.dtype)
        return (o_BHL.transpose(0, 1) @ w_uv_HVL.mT).transpose(0, 1)

    def _kv_b_per_head(self) -> tuple[Tensor, Tensor]:
        c = self.config
        w_HOL = torch.unflatten(self.kv_b.weight_OI, 0, (c.num_attention_heads, c.qk_nope_head_dim + c.v_head_dim))
        w_uk_HNL, w_uv_HVL = w_HOL.split_with_sizes((c.qk_nope_head_dim, c.v_head_dim), 1)
        return w_uk_HNL, w_uv_HVL

    def _expand(self, latent_SC: Tensor) -> tuple[Tensor, Tensor]:
        """Cached rows to FP32 keys [H, S, N + R] and values [H, S, V]."""
        c = self.config
        latent_SL, k_pe_SR = latent_SC.split_with_sizes((c.kv_lora_rank, c.qk_rope_head_dim), -1)
        kv_HSO = torch.unflatten(self.kv_b(latent_SL).float(), -1, (c.num_attention_heads, -1)).transpose(0, 1)
        k_nope_HSN, v_HSV = kv_HSO.split_with_sizes((c.qk_nope_head_dim, c.v_head_dim), -1)
        k_pe_HSR = k_pe_SR.float().expand(c.num_attention_heads, -1, -1)
        return torch.cat((k_nope_HSN, k_pe_HSR), -1), v_HSV


def merge(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention over all keys from (o_THV, lse_TH) over disjoint parts of them, by log-sum-exp."""
    if len(parts) == 1:
        return parts[0][0]
    weights_PTH = torch.stack([lse_TH for _, lse_TH in parts]).softmax(0)
    o_PTHV = torch.stack([o_THV for o_THV, _ in parts])
    return (o_PTHV.float() * weights_PTH.unsqueeze(-1)).sum(0).to(o_PTHV.dtype)


def _future(scores_HTS: Tensor, causal_offset: int) -> Tensor:
    """True where key s lies after query t, which sits at position causal_offset + t of the keys: [T, S]."""
    num_queries, num_keys = scores_HTS.shape[-2:]
    ones_TS = torch.ones(num_queries, num_keys, dtype=torch.bool, device=scores_HTS.device)
    return ones_TS.triu(causal_offset + 1)
