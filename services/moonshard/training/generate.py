"""Greedy answers for evaluation, many prompts at once: the served decoder over a padded cache.

Legend: B sequences, S cached tokens, T tokens of a step, C cached width.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moonshard.model.decoder import Decoder
from moonshard.model.mla import MLA


@dataclass(slots=True)
class _Caches:
    """Latents by layer, [B, S, C]; `lengths` counts each sequence's tokens after the step that runs."""

    lengths_B: Tensor
    room: int
    latents: dict[int, Tensor] = field(default_factory=dict)

    def attend(self, layer: int, mla: MLA, q_nope_THN: Tensor, q_pe_THR: Tensor, latent_TC: Tensor) -> Tensor:
        cache_BSC = self.latents.setdefault(
            layer, latent_TC.new_zeros(len(self.lengths_B), self.room, latent_TC.shape[1])
        )
        start = 0
        if len(latent_TC) == len(self.lengths_B):
            cache_BSC[torch.arange(len(latent_TC)), self.lengths_B - 1] = latent_TC
            return mla.absorbed(q_nope_THN, q_pe_THR, cache_BSC[:, : int(self.lengths_B.max())], self.lengths_B)
        parts = []
        for index, length in enumerate(self.lengths_B.tolist()):
            part = slice(start, start + length)
            cache_BSC[index, :length] = latent_TC[part]
            parts.append(mla.plain(q_nope_THN[part], q_pe_THR[part], latent_TC[part], causal_offset=0)[0])
            start += length
        return torch.cat(parts)


@torch.inference_mode()
def answers(
    decoder: Decoder, prompts: Sequence[Sequence[int]], max_tokens: int, ends: Collection[int]
) -> list[list[int]]:
    """The likeliest continuation of each prompt (two tokens or more), without its end token."""
    lengths_B = torch.tensor([len(prompt) for prompt in prompts])
    caches = _Caches(lengths_B, int(lengths_B.max()) + max_tokens)
    found: list[list[int]] = [[] for _ in prompts]
    done = [False] * len(prompts)
    positions_T = torch.cat([torch.arange(len(prompt)) for prompt in prompts])
    hidden_TD = decoder.forward(
        torch.tensor([token for prompt in prompts for token in prompt]), positions_T, caches.attend
    )
    last_BD = hidden_TD[lengths_B.cumsum(0) - 1]
    for _ in range(max_tokens):
        tokens_B = decoder.logits(last_BD).argmax(-1)
        for index, token in enumerate(tokens_B.tolist()):
            done[index] = done[index] or token in ends
            if not done[index]:
                found[index].append(token)
        if all(done):
            break
        caches.lengths_B = caches.lengths_B + 1
        last_BD = decoder.forward(tokens_B, caches.lengths_B - 1, caches.attend)
    return found
