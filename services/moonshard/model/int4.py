"""INT4 weights as compressed-tensors packs them (specification 4.2): the slow obvious arithmetic.

Legend: O out, I in, G = I / 32 groups. A value q in [-8, 7] is stored as q + 8 in four bits; eight values fill an int32
along the input dimension, the lowest nibble holding the lowest input index.
"""

import torch
from torch import Tensor
from torch.nn import functional

GROUP_SIZE = 32
# Weights dequantised at once on a CPU: fewer than fit its caches; more cost page faults (5 x at K2.5's widths).
_BLOCK_WEIGHTS = 1 << 20


def pack(q_OI: Tensor) -> Tensor:
    """Integers in [-8, 7], shape [..., O, I], to int32 words [..., O, I/8]."""
    nibbles = (q_OI.to(torch.int8) + 8).view(torch.uint8)
    return (nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)).view(torch.int32)


def unpack(packed: Tensor) -> Tensor:
    """int32 words [..., O, I/8] to int8 values in [-8, 7], shape [..., O, I]."""
    # Little-endian bytes hold (low, high) nibbles of inputs (2k, 2k + 1): spread each over the two bytes of an int16.
    spread = packed.contiguous().view(torch.uint8).to(torch.int16)
    spread = torch.bitwise_left_shift(spread, 4).bitwise_or_(spread).bitwise_and_(0x0F0F)
    return spread.view(torch.int8).sub_(8)


def quantise(w_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [..., O, I] to (packed int32 [..., O, I/8], scale BF16 [..., O, G]); scale = max|w| / 7.5 per group."""
    groups = torch.unflatten(w_OI.float(), -1, (-1, GROUP_SIZE))
    scale = (groups.abs().amax(-1) / 7.5).to(torch.bfloat16)
    divisor = scale.float().masked_fill(scale == 0, 1.0).unsqueeze(-1)
    q = (groups / divisor).round().clamp(-8, 7)
    return pack(q.flatten(-2)), scale


def dequantise(packed: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights [..., O, I] = q * scale, multiplied in FP32 and rounded once to `dtype`."""
    groups = torch.unflatten(unpack(packed).to(torch.float32), -1, (-1, GROUP_SIZE))
    return groups.mul_(scale.float().unsqueeze(-1)).flatten(-2).to(dtype)


def linear(x_NI: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """x times the transposed weights, [N, O] in the dtype of x; weights [O, I] dequantised to that dtype."""
    rows = max(1, _BLOCK_WEIGHTS // x_NI.shape[-1]) if packed.device.type == "cpu" else len(packed)
    if rows >= len(packed):
        return functional.linear(x_NI, dequantise(packed, scale, x_NI.dtype))
    blocks = range(0, len(packed), rows)
    parts = (dequantise(packed[i : i + rows], scale[i : i + rows], x_NI.dtype) for i in blocks)
    return torch.cat([functional.linear(x_NI, part) for part in parts], -1)
