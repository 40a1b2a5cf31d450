"""One step's gradients on several cores: each thread takes its rows through a model of its own over the same weights.

Coarser than torch's threads inside an operator: they wait for each other once a step, not hundreds of times, which is
what counts beside other programs.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from moonshard.model.config import ModelConfig
from moonshard.model.weights import DecoderWeights, LayerWeights, SwiGLUWeights
from moonshard.training.model import Batch, Model
from moonshard.training.muon import Each
from moonshard.training.parameters import ExpertWeights, Parameters


@dataclass(frozen=True, slots=True)
class Gradients:
    """What a step saw beside gradients, which lie in the parameters' `grad`. Counts and logits by layer."""

    loss: float
    counts: dict[int, Tensor]
    max_logits: dict[int, Tensor]


class Replicas:
    """Models that share storage. A context manager: it owns threads."""

    def __init__(self, config: ModelConfig, parameters: Parameters, num_replicas: int) -> None:
        shared = [parameters, *(_same_storage(parameters) for _ in range(num_replicas - 1))]
        self._models = [Model(config, each) for each in shared]
        self._pool = ThreadPoolExecutor(num_replicas)

    def __enter__(self) -> "Replicas":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def each(self) -> Each:
        """A map over the threads."""
        return self._pool.map

    def gradients(self, batch: Batch, quantised: bool) -> Gradients:
        """Add the gradients of the batch's mean loss to the first model's parameters."""
        total = float(_scored(batch))
        parts = _split(batch, len(self._models))
        run = partial(_run, total=total, quantised=quantised)
        found = list(self._pool.map(run, self._models, parts))
        for model in self._models[1:]:
            _move_gradients(model.parameters, self._models[0].parameters)
        return Gradients(
            loss=sum(each.loss for each in found),
            counts={layer: sum_of(each.counts[layer] for each in found) for layer in found[0].counts},
            max_logits={
                layer: torch.stack([each.max_logits[layer] for each in found]).amax(0) for layer in found[0].max_logits
            },
        )


def sum_of(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0)


def _run(model: Model, batch: Batch, total: float, quantised: bool) -> Gradients:
    model.routed.quantised = quantised
    loss, attention = model.loss(batch)
    share = loss * (float(_scored(batch)) / total)
    share.backward()  # type: ignore[no-untyped-call]
    return Gradients(share.item(), dict(model.routed.counts), attention.max_logits)


def _scored(batch: Batch) -> Tensor:
    return batch.weights_BS[:, 1:].sum()


def _split(batch: Batch, parts: int) -> list[Batch]:
    tensors = (batch.tokens_BS, batch.documents_BS, batch.positions_BS, batch.weights_BS)
    return [Batch(*each) for each in zip(*(tensor.tensor_split(parts) for tensor in tensors), strict=True)]


def _move_gradients(source: Parameters, target: Parameters) -> None:
    for (name, mine), (_, theirs) in zip(source.named(), target.named(), strict=True):
        assert mine.grad is not None, f"{name} has no gradient"
        assert theirs.grad is not None, f"{name} has no gradient"
        theirs.grad.add_(mine.grad)
        mine.grad = None


def _same_storage(parameters: Parameters) -> Parameters:
    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_()

    def layer_leaves(layer: LayerWeights) -> LayerWeights:
        names = ("input_norm", "post_attention_norm", "qkv_a", "q_a_norm", "q_b", "kv_a_norm", "kv_b", "o")
        changed = {name: leaf(getattr(layer, name)) for name in names}
        ffn = SwiGLUWeights(leaf(layer.ffn.gate_up), leaf(layer.ffn.down))
        return replace(layer, **changed, ffn=ffn, gate=None if layer.gate is None else leaf(layer.gate))

    d = parameters.decoder
    decoder = DecoderWeights(leaf(d.embedding), tuple(map(layer_leaves, d.layers)), leaf(d.norm), leaf(d.head))
    experts = {index: ExpertWeights(leaf(e.gate_up), leaf(e.down)) for index, e in parameters.experts.items()}
    return Parameters(decoder, experts)
