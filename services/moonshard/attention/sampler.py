"""From logits to tokens.

A sampled token depends on the logits, the request's seed and the token's position, and on nothing else that runs:
the one random number a token needs is a hash of seed and position.
"""

import torch
from torch import Tensor

from moonshard.sampling import SamplingParams

_MASK = 2**64 - 1


def sample(logits_NV: Tensor, params: list[SamplingParams], positions: list[int]) -> list[int]:
    """One token per row of float32 logits. positions: index of the token to be sampled in its sequence."""
    greedy_N = logits_NV.argmax(dim=-1).tolist()
    return [
        greedy if p.temperature == 0 or p.top_k == 1 else _draw(logits_V, p, position)
        for greedy, logits_V, p, position in zip(greedy_N, logits_NV, params, positions, strict=True)
    ]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is a function of both: SplitMix64 (Steele, Lea, Flood 2014)."""
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return float((z ^ (z >> 31)) >> 11) * 2.0**-53


def _draw(logits_V: Tensor, params: SamplingParams, position: int) -> int:
    assert params.seed is not None, "the router draws a seed where the request gives none"
    # Stable, so that equal logits keep the order of their ids on every run.
    sorted_V, order_V = torch.sort(logits_V, descending=True, stable=True)
    if params.top_k:
        sorted_V = sorted_V[: params.top_k]
    probs_V = torch.softmax(sorted_V.double() / params.temperature, dim=-1)
    cumulative_V = probs_V.cumsum(dim=-1)
    # The smallest set whose probability reaches top_p: a token stays while those before it have less.
    kept = int((cumulative_V - probs_V < params.top_p).sum())
    target = uniform(params.seed, position) * float(cumulative_V[kept - 1])
    rank = int(torch.searchsorted(cumulative_V[:kept], target, right=True))
    return int(order_V[min(rank, kept - 1)])
