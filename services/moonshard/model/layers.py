"""RMSNorm, Linear and SwiGLU. Weights are plain tensors; nothing here trains.

Legend: T rows, D hidden size, O out, I in.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """Statistics in FP32, cast to the activation's dtype, then times the weight (specification 2.1)."""

    weight_D: Tensor
    eps: float

    def __call__(self, x_TD: Tensor) -> Tensor:
        return functional.rms_norm(x_TD.float(), self.weight_D.shape, None, self.eps).to(x_TD.dtype) * self.weight_D


@dataclass(frozen=True, slots=True)
class Linear:
    """No bias anywhere in the text model. `weight_OI` keeps the published [out, in] order."""

    weight_OI: Tensor

    def __call__(self, x_TI: Tensor) -> Tensor:
        return functional.linear(x_TI, self.weight_OI)


@dataclass(frozen=True, slots=True)
class SwiGLU:
    """down(silu(gate(x)) * up(x)); gate and up stacked in one weight [2 * width, D], gate first."""

    gate_up: Linear
    down: Linear

    def __call__(self, x_TD: Tensor) -> Tensor:
        return self.down(silu_and_mul(self.gate_up(x_TD)))


def silu_and_mul(gate_up_TI: Tensor) -> Tensor:
    """[T, 2 * width] to [T, width]: silu of the first half times the second."""
    gate, up = gate_up_TI.chunk(2, -1)
    return functional.silu(gate) * up
