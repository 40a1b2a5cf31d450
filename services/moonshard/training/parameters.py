"""The model's weights as leaves of autograd, and which optimiser moves which.

Legend: E experts, I expert width, D hidden size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moonshard.model.config import ModelConfig
from moonshard.model.weights import DecoderWeights, LayerWeights, allocate


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """One layer's routed experts: gate_up [E, 2 I, D] with gate first, down [E, D, I]."""

    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class Matrix:
    """A parameter that Muon moves. `parts` are the heights of the matrices stacked along its last but one axis."""

    name: str
    tensor: Tensor
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Parameters:
    """All weights of a model, FP32. `experts` by layer index."""

    decoder: DecoderWeights
    experts: dict[int, ExpertWeights]

    @classmethod
    def initialise(cls, config: ModelConfig, seed: int) -> "Parameters":
        """Normal weights of variance 1 / fan-in; what layers add to the residual stream starts small."""
        generator = torch.Generator().manual_seed(seed)
        decoder = allocate(config, torch.float32, "cpu")
        experts = {layer: _empty_experts(config) for layer in config.moe_layers}
        parameters = cls(decoder, experts)
        for name, tensor in parameters.named():
            _fill(name, tensor, generator)
            tensor.requires_grad_()
        for layer in decoder.layers:
            if layer.gate_bias is not None:
                layer.gate_bias.zero_()
        return parameters

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every trained tensor; gate biases are not among them, the balancing rule moves those."""
        for matrix in self.matrices():
            yield matrix.name, matrix.tensor
        yield from self.others()

    def matrices(self) -> Iterator[Matrix]:
        """Muon's share: the hidden matrices, each stacked part for itself."""
        for index, layer in enumerate(self.decoder.layers):
            yield from _layer_matrices(index, layer)
        for index, experts in self.experts.items():
            yield Matrix(f"{index}.experts.gate_up", experts.gate_up, _halves(experts.gate_up))
            yield Matrix(f"{index}.experts.down", experts.down, (experts.down.shape[-2],))

    def others(self) -> Iterator[tuple[str, Tensor]]:
        """AdamW's share: embedding, head and norms."""
        yield "embedding", self.decoder.embedding
        yield "head", self.decoder.head
        yield "norm", self.decoder.norm
        for index, layer in enumerate(self.decoder.layers):
            for name in ("input_norm", "post_attention_norm", "q_a_norm", "kv_a_norm"):
                yield f"{index}.{name}", getattr(layer, name)

    def gate_biases(self) -> dict[int, Tensor]:
        """e_score_correction_bias by layer index."""
        found = {index: layer.gate_bias for index, layer in enumerate(self.decoder.layers)}
        return {index: bias for index, bias in found.items() if bias is not None}


def _layer_matrices(index: int, layer: LayerWeights) -> Iterator[Matrix]:
    rank = layer.q_b.shape[1]
    yield Matrix(f"{index}.qkv_a", layer.qkv_a, (rank, layer.qkv_a.shape[0] - rank))
    for name in ("q_b", "kv_b", "o"):
        tensor = getattr(layer, name)
        yield Matrix(f"{index}.{name}", tensor, (tensor.shape[0],))
    yield Matrix(f"{index}.ffn.gate_up", layer.ffn.gate_up, _halves(layer.ffn.gate_up))
    yield Matrix(f"{index}.ffn.down", layer.ffn.down, (layer.ffn.down.shape[0],))
    if layer.gate is not None:
        yield Matrix(f"{index}.gate", layer.gate, (layer.gate.shape[0],))


def _halves(stacked: Tensor) -> tuple[int, int]:
    return stacked.shape[-2] // 2, stacked.shape[-2] // 2


def _empty_experts(c: ModelConfig) -> ExpertWeights:
    num, width, hidden = c.n_routed_experts, c.moe_intermediate_size, c.hidden_size
    return ExpertWeights(torch.empty(num, 2 * width, hidden), torch.empty(num, hidden, width))


def _fill(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    if name.endswith("norm"):
        tensor.fill_(1.0)
    elif name == "embedding":
        tensor.normal_(0.0, 0.5, generator=generator)
    else:
        gain = 0.3 if name.endswith((".o", ".down")) else 1.0
        tensor.normal_(0.0, gain * tensor.shape[-1] ** -0.5, generator=generator)
