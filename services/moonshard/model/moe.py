"""One MoE layer: gate, shared expert, and routed experts that may be anywhere.

Legend: T rows, D hidden size, K experts per token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from moonshard.model.experts import ExpertStack
from moonshard.model.gate import Gate
from moonshard.model.layers import SwiGLU


class RoutedExperts(Protocol):
    """Where rows go for their experts. The handle owns the rows until combine is done."""

    def dispatch(self, layer: int, x_TD: Tensor, topk_ids_TK: Tensor, topk_weights_TK: Tensor) -> Any:
        """Start computing; ids are logical int32, weights FP32."""

    def combine(self, handle: Any) -> Tensor:
        """The weighted sums, FP32 [T, D]."""


@dataclass(frozen=True, slots=True)
class MoE:
    """routed(x) + shared(x), added in FP32. The shared expert runs while the rows are away."""

    layer: int
    gate: Gate
    shared: SwiGLU
    routed: RoutedExperts

    def __call__(self, x_TD: Tensor) -> Tensor:
        topk_ids_TK, topk_weights_TK = self.gate(x_TD)
        handle = self.routed.dispatch(self.layer, x_TD, topk_ids_TK, topk_weights_TK)
        shared_TD = self.shared(x_TD)
        return (self.routed.combine(handle) + shared_TD).to(x_TD.dtype)


@dataclass(frozen=True, slots=True)
class LocalExperts:
    """All experts in this process: the obvious twin of every transport. `stacks` by layer index."""

    stacks: Mapping[int, ExpertStack]

    def dispatch(self, layer: int, x_TD: Tensor, topk_ids_TK: Tensor, topk_weights_TK: Tensor) -> Tensor:
        return self.stacks[layer].forward(x_TD, topk_ids_TK, topk_weights_TK)

    def combine(self, handle: Tensor) -> Tensor:
        return handle
