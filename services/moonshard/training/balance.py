"""Load balancing without an auxiliary loss (arXiv 2408.15664): busy experts' gate bias sinks, that of idle ones rises.

The published rule moves every bias by the same amount, up or down. That makes each expert busier than the mean in half
of the steps, which is balance only if busy and idle steps are alike. With small batches they are not: an expert of one
language is idle in most steps and very busy in some. So the bias moves in proportion, which evens out the means.

Legend: E experts.
"""

import torch
from torch import Tensor

# A gate that sends everything one way, as at the start of training, must not be thrown to the other side.
_STEEPEST = 4.0


@torch.no_grad()
def move_bias(bias_E: Tensor, counts_E: Tensor, rate: float) -> None:
    """One step of the rule, in place: up by `rate` for an idle expert, down by at most `_STEEPEST` times as much.

    The mean bias is kept at zero: only differences select.
    """
    load_E = counts_E.float()
    bias_E.add_((1 - load_E / load_E.mean()).clamp_(min=-_STEEPEST), alpha=rate)
    bias_E.sub_(bias_E.mean())


def balancedness(counts_E: Tensor) -> float:
    """Mean load over the largest: 1 when all experts carry the same."""
    peak = float(counts_E.max())
    return float(counts_E.float().mean()) / peak if peak else 1.0
