"""INT4 rounding inside training: the forward pass sees what the checkpoint will hold, gradients pass straight through.

Legend: O out, I in, groups of 32 inputs.
"""

from typing import Any

import torch
from torch import Tensor

from moonshard.model.int4 import GROUP_SIZE


def rounded(w_OI: Tensor) -> Tensor:
    """dequantise(*quantise(w)) of model/int4.py without the packing; [..., O, I], I a multiple of 32."""
    groups = torch.unflatten(w_OI, -1, (-1, GROUP_SIZE))
    scale = (groups.abs().amax(-1, keepdim=True) / 7.5).to(torch.bfloat16).float()
    divisor = scale.masked_fill(scale == 0, 1.0)
    return (groups / divisor).round_().clamp_(-8, 7).mul_(scale).flatten(-2)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, w_OI: Tensor) -> Tensor:
        return rounded(w_OI)

    @staticmethod
    def backward(_context: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def fake_quantise(w_OI: Tensor) -> Tensor:
    """`rounded` whose gradient is that of the identity."""
    result: Tensor = _StraightThrough.apply(w_OI)  # type: ignore[no-untyped-call]
    return result
