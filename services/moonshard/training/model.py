"""model/decoder.py over trainable weights: one forward pass over a packed batch, and its loss.

Legend: B rows, S tokens of a row, T = B * S, N scored tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from moonshard.model.config import ModelConfig
from moonshard.model.decoder import Decoder
from moonshard.training.attention import PackedAttention
from moonshard.training.parameters import Parameters
from moonshard.training.routed import TrainedExperts


@dataclass(frozen=True, slots=True)
class Batch:
    """`weights_BS` is what predicting each token counts; documents are numbered within a row, positions within a
    document."""

    tokens_BS: Tensor
    documents_BS: Tensor
    positions_BS: Tensor
    weights_BS: Tensor


class Model:
    """The served decoder with the training forms of attention and routed experts."""

    def __init__(self, config: ModelConfig, parameters: Parameters) -> None:
        self.config, self.parameters = config, parameters
        self.routed = TrainedExperts(parameters.experts)
        self._decoder = Decoder(config, parameters.decoder, self.routed)

    def loss(self, batch: Batch) -> tuple[Tensor, PackedAttention]:
        """Mean cross-entropy of the next tokens under the batch's weights, and what attention saw."""
        return packed_loss(self._decoder, batch)

    @torch.no_grad()
    def logits(self, tokens_BS: Tensor) -> Tensor:
        """FP32 [T, vocab_size] of rows that are one document each."""
        attention = PackedAttention.over(torch.ones_like(tokens_BS))
        positions_BS = torch.arange(tokens_BS.shape[1]).expand_as(tokens_BS)
        hidden_TD = self._decoder.forward(tokens_BS.flatten(), positions_BS.flatten(), attention.attend)
        return self._decoder.logits(hidden_TD)


def packed_loss(decoder: Decoder, batch: Batch) -> tuple[Tensor, PackedAttention]:
    """`Model.loss` for any decoder, a loaded checkpoint's too."""
    attention = PackedAttention.over(batch.documents_BS)
    hidden_TD = decoder.forward(batch.tokens_BS.flatten(), batch.positions_BS.flatten(), attention.attend)
    weights_T = _next(batch.weights_BS, 0.0).flatten()
    scored_N = weights_T.nonzero().squeeze(1)
    logits_NV = decoder.logits(hidden_TD[scored_N])
    targets_N = _next(batch.tokens_BS, 0).flatten()[scored_N]
    losses_N = functional.cross_entropy(logits_NV, targets_N, reduction="none")
    weights_N = weights_T[scored_N]
    return (losses_N * weights_N).sum() / weights_N.sum(), attention


def _next(x_BS: Tensor, fill: float) -> Tensor:
    """Each place's successor in its row. The first token of a document counts nothing, so none is predicted across."""
    return torch.cat((x_BS[:, 1:], x_BS.new_full((len(x_BS), 1), fill)), 1)
