"""One token from one row of logits. Exact, and without sorting the vocabulary where a few tokens hold the mass.

V vocabulary, C candidates. All sums are of one row in double precision, so nothing else that runs can change a draw.
"""

import numpy as np
from numpy.typing import NDArray

from moonshard.attention.ranking import ranked
from moonshard.sampling import SamplingParams

_MASK = 2**64 - 1

# A token is a candidate when its probability is at least this share of the likeliest one's. Tried in turn, until the
# candidates are sure to hold the token to be drawn; the last takes all that have any probability.
_SHARES = (0.03, 1e-3, 1e-5, 0.0)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is a function of both: SplitMix64 (Steele, Lea, Flood 2014)."""
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return float((z ^ (z >> 31)) >> 11) * 2.0**-53


def draw(logits_V: NDArray[np.float32], params: SamplingParams, point: float) -> int:
    """The token at `point` in [0, 1) of the distribution, likeliest tokens first, ties by id.

    The distribution is softmax(logits / temperature), cut to the tokens that min_p leaves, of them to the top_k
    likeliest, of them to the smallest set that reaches top_p. temperature > 0; at least one logit is finite.
    """
    weights_V = _weights(logits_V, params.temperature)
    total = float((weights_V[weights_V >= params.min_p] if params.min_p else weights_V).sum())
    for share in _SHARES:
        floor = max(share, params.min_p)
        candidates_C = np.flatnonzero(weights_V >= floor) if floor else np.flatnonzero(weights_V)
        are_all = floor == params.min_p or 0 < params.top_k <= len(candidates_C)
        if are_all or _suffice(weights_V[candidates_C], total, params, point):
            break
    ids_C = ranked(logits_V, candidates_C)[: params.top_k or None]
    return int(ids_C[_place(weights_V[ids_C], total, params, point)])


def _weights(logits_V: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Probabilities as shares of the largest. In place: the vocabulary outgrows the near caches."""
    weights_V = logits_V.astype(np.float64)
    weights_V -= float(logits_V.max())
    if temperature != 1:
        with np.errstate(over="ignore"):  # a temperature next to nothing
            weights_V /= temperature
    np.exp(weights_V, out=weights_V)
    return weights_V


def _suffice(weights_C: NDArray[np.float64], total: float, params: SamplingParams, point: float) -> bool:
    """Whether the token to be drawn is among candidates that are not all."""
    reached = params.top_p if params.top_p < 1 else point
    # The margin is for sums in another order.
    return not params.top_k and float(weights_C.sum()) > reached * total * (1 + 1e-9)


def _place(weights_C: NDArray[np.float64], total: float, params: SamplingParams, point: float) -> int:
    """Which of the candidates, likeliest first."""
    cumulative_C = weights_C.cumsum()
    kept, mass = len(weights_C), total
    if params.top_k:
        mass = float(cumulative_C[-1])
    if params.top_p < 1:
        # A token stays while those before it have less than top_p.
        kept = int((cumulative_C - weights_C < params.top_p * mass).sum())
        mass = float(cumulative_C[kept - 1])
    return min(int(np.searchsorted(cumulative_C[:kept], point * mass, side="right")), kept - 1)
