"""The whole model in one process: the oracle of every parity test. Slow and obvious.

Legend: T tokens, S cached tokens, H heads, N no-rope dims, R rope dims, C cached width, V value dims.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from moonshard.model.checkpoint import Checkpoint
from moonshard.model.config import ModelConfig
from moonshard.model.decoder import Decoder, load_decoder
from moonshard.model.experts import load_expert_stacks
from moonshard.model.mla import MLA
from moonshard.model.moe import LocalExperts


class ContiguousCache:
    """Latents of one sequence, one growing tensor per layer; attends plain for a prompt, absorbed for one token."""

    def __init__(self) -> None:
        self._latent_SC: dict[int, Tensor] = {}

    def attend(self, layer: int, mla: MLA, q_nope_THN: Tensor, q_pe_THR: Tensor, latent_TC: Tensor) -> Tensor:
        """Append the new tokens' latents and attend over all of them."""
        known = self._latent_SC.get(layer)
        latent_SC = latent_TC if known is None else torch.cat((known, latent_TC))
        self._latent_SC[layer] = latent_SC
        num_new, num_all = len(latent_TC), len(latent_SC)
        if num_new == 1:
            lengths_1 = torch.tensor([num_all], device=latent_SC.device)
            return mla.absorbed(q_nope_THN, q_pe_THR, latent_SC.unsqueeze(0), lengths_1)
        return mla.plain(q_nope_THN, q_pe_THR, latent_SC, causal_offset=num_all - num_new)[0]


def attend_whole(_layer: int, mla: MLA, q_nope_THN: Tensor, q_pe_THR: Tensor, latent_TC: Tensor) -> Tensor:
    """The plain form over one whole sequence; nothing is cached."""
    return mla.plain(q_nope_THN, q_pe_THR, latent_TC, causal_offset=0)[0]


class Reference:
    """Construct with `load`."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.config = decoder.config

    @classmethod
    def load(
        cls,
        path: Path,
        dtype: torch.dtype = torch.float32,
        latent_norm_eps: float | None = None,
        device: torch.device | str = "cpu",
    ) -> "Reference":
        """All weights of a checkpoint directory. Raises ConfigError or CheckpointError."""
        config = ModelConfig.from_dir(path)
        with Checkpoint(path, config) as checkpoint:
            stacks = load_expert_stacks(checkpoint, range(config.n_routed_experts), dtype, device)
            routed = LocalExperts(stacks)
            return cls(load_decoder(checkpoint, config, routed, dtype, device, latent_norm_eps))

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """FP32 [T, vocab_size] at every position of one sequence."""
        hidden_TD = self.decoder.forward(self._tensor(token_ids), self._tensor(range(len(token_ids))), attend_whole)
        return self.decoder.logits(hidden_TD)

    @torch.inference_mode()
    def greedy(self, token_ids: Sequence[int], max_tokens: int, eos_token_ids: Collection[int] = ()) -> list[int]:
        """The likeliest continuation, token by token; the end token, when one is met, is its last."""
        cache = ContiguousCache()
        generated: list[int] = []
        step, position = list(token_ids), 0
        while len(generated) < max_tokens:
            positions_T = self._tensor(range(position, position + len(step)))
            hidden_TD = self.decoder.forward(self._tensor(step), positions_T, cache.attend)
            generated.append(int(self.decoder.logits(hidden_TD[-1:]).argmax(-1)))
            if generated[-1] in eos_token_ids:
                break
            step, position = generated[-1:], position + len(step)
        return generated

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.decoder.device)
