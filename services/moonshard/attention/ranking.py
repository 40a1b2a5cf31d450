"""Tokens in order of their logits, likeliest first, ties by id. V vocabulary, C candidates."""

import numpy as np
from numpy.typing import NDArray


def ranked(logits_V: NDArray[np.float32], candidates_C: NDArray[np.int64]) -> NDArray[np.int64]:
    """The candidates in order; their logits are not NaN.

    Sorts whole numbers made of logit and id: ten times faster than a stable sort of floats.
    """
    bits_C = (logits_V[candidates_C] + np.float32(0)).view(np.uint32)  # the sum makes -0 and 0 one
    # Turned so that a larger logit is a smaller number.
    keys_C = np.where(bits_C >> 31, bits_C, bits_C ^ np.uint32(0x7FFFFFFF)).astype(np.uint64)
    packed_C = (keys_C << np.uint64(32)) | candidates_C.astype(np.uint64)
    packed_C.sort()
    return (packed_C & np.uint64(0xFFFFFFFF)).astype(np.int64)


def largest(logits_V: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The `count` likeliest of the vocabulary, or all of it when it has fewer."""
    if count == 0:
        return np.empty(0, np.int64)
    place = len(logits_V) - min(count, len(logits_V))
    least = np.partition(logits_V, place)[place]
    return ranked(logits_V, np.flatnonzero(logits_V >= least))[:count]
