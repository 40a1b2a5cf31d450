"""The text model on CPUs with native kernels: BF16 weights as stored, one or two native calls a layer.

The same role as `model.decoder.Decoder`, with the paged cache read inside the kernels. Residual stream, norms, softmax
and gate are FP32; `activations` says what linear layers take: "float32", or rows rounded to "bfloat16", which is faster
from a few rows on. Either way a row's bits depend on its own sequence alone (kernels/attention.py).

Legend: T rows of a step, N rows to score, D hidden size, R rope dims.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from moonshard.kernels import Pool
from moonshard.kernels.attention import Activations, AttentionBlock, AttentionWeights, Gate, Head, PagedStep, SwiGLU
from moonshard.model.config import ModelConfig
from moonshard.model.moe import RoutedExperts
from moonshard.model.rope import Rope
from moonshard.model.weights import DecoderWeights, LayerWeights


@dataclass(frozen=True, slots=True)
class _Layer:
    """`ffn`: the shared expert of an MoE layer, or a dense layer's MLP."""

    attention: AttentionBlock
    ffn: SwiGLU


class NativeDecoder:
    """`weights` in bfloat16 (gate and its bias float32); they are repacked and need not stay.

    latent_norm_eps as in `Decoder`. Rows go to `routed` in the activations' type. Not thread-safe.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        routed: RoutedExperts,
        pool: Pool,
        latent_norm_eps: float | None = None,
        activations: Activations = "float32",
    ) -> None:
        self.config = config
        self.activations: Activations = activations
        self._pool, self._routed = pool, routed
        self._embedding, self._rope = weights.embedding, Rope(config)
        self._head = Head(pool, weights.norm, weights.head, config.rms_norm_eps)
        eps = config.rms_norm_eps if latent_norm_eps is None else latent_norm_eps
        self._layers = tuple(_layer(config, pool, layer, eps) for layer in weights.layers)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the weights in use, the embedding included."""
        layers = sum(layer.attention.resident_bytes + layer.ffn.resident_bytes for layer in self._layers)
        return layers + self._head.resident_bytes + self._embedding.nbytes

    def forward(self, token_ids_T: Tensor, positions_T: Tensor, paged: PagedStep) -> Tensor:
        """Hidden states [T, D] float32 before the final norm, which `logits` applies to the rows that need it.

        positions_T counts each token's place in its own sequence. T may be 0.
        """
        x_TD = functional.embedding(token_ids_T, self._embedding).float()
        rotations_TR = torch.view_as_real(self._rope.rotations(positions_T)).flatten(1)
        for index, layer in enumerate(self._layers):
            call = (self._pool, index, x_TD, paged, rotations_TR, self.activations)
            h_TD, topk_ids_TK, topk_weights_TK = layer.attention(*call)
            if layer.attention.gate is None:
                layer.ffn.add_to(self._pool, x_TD, h_TD)
                continue
            handle = self._routed.dispatch(index, h_TD, topk_ids_TK, topk_weights_TK)
            layer.ffn.add_to(self._pool, x_TD, h_TD)
            x_TD += self._routed.combine(handle)
        return x_TD

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Rows of `forward`'s result to FP32 [N, vocab_size]."""
        return self._head(self._pool, hidden_ND, self.activations)


def _layer(config: ModelConfig, pool: Pool, w: LayerWeights, latent_eps: float) -> _Layer:
    attention = AttentionBlock(
        pool,
        AttentionWeights(w.input_norm, w.q_a_norm, w.kv_a_norm, w.post_attention_norm, w.qkv_a, w.q_b, w.kv_b, w.o),
        _gate(config, pool, w),
        heads=config.num_attention_heads,
        nope=config.qk_nope_head_dim,
        eps=config.rms_norm_eps,
        latent_eps=latent_eps,
        scale=config.softmax_scale,
    )
    return _Layer(attention, SwiGLU(pool, w.ffn.gate_up, w.ffn.down))


def _gate(config: ModelConfig, pool: Pool, w: LayerWeights) -> Gate | None:
    if w.gate is None or w.gate_bias is None:
        return None
    return Gate(
        pool,
        w.gate,
        w.gate_bias,
        top_k=config.num_experts_per_tok,
        num_groups=config.n_group,
        kept_groups=config.topk_group,
        normalise=config.norm_topk_prob,
        scale=config.routed_scaling_factor,
    )
