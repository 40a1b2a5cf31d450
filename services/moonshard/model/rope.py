"""Rotary positions with YaRN, interleaved pairs (specification 2.4).

Legend: T tokens, R rope dims of a head, P = R / 2 pairs. A pair (2i, 2i + 1) is one complex number and a rotation a
product with another; the result stays interleaved. Angles and products are FP32.
"""

import math

import torch
from torch import Tensor

from moonshard.model.config import ModelConfig, YarnConfig


class Rope:
    """Rotations of one model: construct once, `rotations` once per step, `rotate` in each layer."""

    def __init__(self, config: ModelConfig, device: torch.device | str = "cpu") -> None:
        self.inv_freq_P = inverse_frequencies(config).to(device)
        self._scale = config.rope.cos_sin_scale if config.rope else 1.0

    def rotations(self, positions_T: Tensor) -> Tensor:
        """Integer positions to complex64 [T, P]."""
        angles_TP = positions_T.float().unsqueeze(-1) * self.inv_freq_P
        return torch.polar(torch.full_like(angles_TP, self._scale), angles_TP)


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """[..., R] times complex rotations that broadcast to [..., P]; the result has the dtype of x."""
    pairs = torch.view_as_complex(torch.unflatten(x.float(), -1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotations).flatten(-2).to(x.dtype)


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """FP32 [P]: plain frequencies, blended by the yarn ramp with those divided by the factor."""
    dim = config.qk_rope_head_dim
    inv_freq_P = 1.0 / config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if config.rope is None:
        return inv_freq_P
    low, high = ramp_bounds(config.rope, dim, config.rope_theta)
    ramp_P = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return inv_freq_P * (1 - ramp_P) + inv_freq_P / config.rope.factor * ramp_P


def ramp_bounds(yarn: YarnConfig, dim: int, theta: float) -> tuple[float, float]:
    """Pairs where the ramp begins and ends (K2.5: 8 and 20)."""

    def pair(num_rotations: float) -> float:
        length = yarn.original_max_position_embeddings
        return dim * math.log(length / (num_rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(yarn.beta_fast), pair(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return low, high if high != low else high + 0.001
