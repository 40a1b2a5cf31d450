"""Load balancing without an auxiliary loss (arXiv 2408.15664): busy experts' gate bias sinks, that of idle ones rises.

Legend: E experts.
"""

import torch
from torch import Tensor


@torch.no_grad()
def move_bias(bias_E: Tensor, counts_E: Tensor, rate: float) -> None:
    """One step of the rule, in place. The mean bias is kept at zero: only differences select."""
    load_E = counts_E.float()
    bias_E.add_((load_E.mean() - load_E).sign(), alpha=rate)
    bias_E.sub_(bias_E.mean())


def balancedness(counts_E: Tensor) -> float:
    """Mean load over the largest: 1 when all experts carry the same."""
    peak = float(counts_E.max())
    return float(counts_E.float().mean()) / peak if peak else 1.0
