"""The text model but its caches and routed experts: embeddings, layers, head. One flat batch of tokens at a time.

Legend: T tokens of a step (from any number of sequences), N rows to score, D hidden size, H heads, V value dims.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from moonshard.model.checkpoint import Checkpoint, Progress
from moonshard.model.config import ModelConfig
from moonshard.model.gate import Gate
from moonshard.model.layers import Linear, RMSNorm, SwiGLU
from moonshard.model.mla import MLA
from moonshard.model.moe import MoE, RoutedExperts
from moonshard.model.rope import Rope
from moonshard.model.weights import DecoderWeights, LayerWeights, load_weights

Attend = Callable[[int, MLA, Tensor, Tensor, Tensor], Tensor]
"""attend(layer, mla, q_nope_THN, q_pe_THR, latent_TC) -> o_THV: stores the new latents and attends over the cache."""


@dataclass(frozen=True, slots=True)
class Block:
    """Pre-norm layer: x += attention(norm(x)); x += ffn(norm(x))."""

    index: int
    input_layernorm: RMSNorm
    attention: MLA
    post_attention_layernorm: RMSNorm
    ffn: MoE | SwiGLU

    def __call__(self, x_TD: Tensor, rotations_TP: Tensor, attend: Attend) -> Tensor:
        queries_and_latent = self.attention.project(self.input_layernorm(x_TD), rotations_TP)
        x_TD = x_TD + self.attention.output(attend(self.index, self.attention, *queries_and_latent))
        return x_TD + self.ffn(self.post_attention_layernorm(x_TD))


class Decoder:
    """The model over its weights. dtype and device are those of the weights.

    latent_norm_eps is the eps of the two latent norms: None takes rms_norm_eps as vLLM and SGLang do; 1e-6 is what
    transformers uses (specification 2.1).
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        routed: RoutedExperts,
        latent_norm_eps: float | None = None,
    ) -> None:
        self.config = config
        self._embedding = weights.embedding
        self._rope = Rope(config, weights.embedding.device)
        self._norm = RMSNorm(weights.norm, config.rms_norm_eps)
        self._head = Linear(weights.head)
        eps = config.rms_norm_eps if latent_norm_eps is None else latent_norm_eps
        self._blocks = tuple(_block(config, i, w, routed, eps) for i, w in enumerate(weights.layers))

    @property
    def dtype(self) -> torch.dtype:
        return self._embedding.dtype

    @property
    def device(self) -> torch.device:
        return self._embedding.device

    def forward(self, token_ids_T: Tensor, positions_T: Tensor, attend: Attend) -> Tensor:
        """Hidden states [T, D] before the final norm, which `logits` applies to the rows that need it.

        positions_T counts each token's place in its own sequence. T may be 0.
        """
        x_TD = functional.embedding(token_ids_T, self._embedding)
        rotations_TP = self._rope.rotations(positions_T)
        for block in self._blocks:
            x_TD = block(x_TD, rotations_TP, attend)
        return x_TD

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Rows of `forward`'s result to FP32 [N, vocab_size]."""
        return self._head(self._norm(hidden_ND)).float()


def load_decoder(
    checkpoint: Checkpoint,
    config: ModelConfig,
    routed: RoutedExperts,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    latent_norm_eps: float | None = None,
    progress: Progress | None = None,
) -> Decoder:
    """Load the attention role's tensors, none of the routed experts."""
    return Decoder(config, load_weights(checkpoint, dtype, device, progress), routed, latent_norm_eps)


def _block(config: ModelConfig, index: int, w: LayerWeights, routed: RoutedExperts, latent_eps: float) -> Block:
    attention = MLA(
        config,
        qkv_a=Linear(w.qkv_a),
        q_a_layernorm=RMSNorm(w.q_a_norm, latent_eps),
        q_b=Linear(w.q_b),
        kv_a_layernorm=RMSNorm(w.kv_a_norm, latent_eps),
        kv_b=Linear(w.kv_b),
        o=Linear(w.o),
    )
    swiglu = SwiGLU(Linear(w.ffn.gate_up), Linear(w.ffn.down))
    ffn: MoE | SwiGLU = swiglu
    if w.gate is not None and w.gate_bias is not None:
        ffn = MoE(index, Gate(config, w.gate, w.gate_bias), swiglu, routed)
    input_norm = RMSNorm(w.input_norm, config.rms_norm_eps)
    return Block(index, input_norm, attention, RMSNorm(w.post_attention_norm, config.rms_norm_eps), ffn)
