"""Log-probabilities of single rows of logits, for those who asked.

V vocabulary. One row at a time, in double precision: nothing of size rows x V is held, and no other row matters.
"""

import numpy as np
from numpy.typing import NDArray

from moonshard.attention.ranking import largest
from moonshard.sampling import TokenLogprobs


def logprobs_of(logits_V: NDArray[np.float32], token: int, num_top: int) -> TokenLogprobs:
    """Of `token` and of the num_top likeliest, ties by id."""
    peak = float(logits_V.max())
    normaliser = peak + float(np.log(np.exp(logits_V.astype(np.float64) - peak).sum()))
    top = [(int(found), float(logits_V[found]) - normaliser) for found in largest(logits_V, num_top)]
    return TokenLogprobs(token, float(logits_V[token]) - normaliser, tuple(top))
