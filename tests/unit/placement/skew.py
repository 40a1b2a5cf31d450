"""Loads as routers of large MoE models show them: few hot experts, different ones in each layer."""

import numpy as np
from numpy.typing import NDArray


def skewed_load(
    num_layers: int, num_experts: int, num_rows: int, top_k: int, seed: int, concentration: float = 0.6
) -> NDArray[np.int64]:
    """[layers, experts]: rows, of which each layer has num_rows x top_k. A smaller concentration is more skewed.

    An expert's popularity is drawn from a gamma distribution, as popularities of topics are; neighbouring layers share
    some of it.
    """
    draw = np.random.default_rng(seed)
    heat_LE = np.empty((num_layers, num_experts))
    heat_E = draw.gamma(concentration, size=num_experts)
    for layer in range(num_layers):
        heat_E = 0.5 * heat_E[draw.permutation(num_experts)] + 0.5 * draw.gamma(concentration, size=num_experts)
        heat_LE[layer] = heat_E + 0.02
    shares_LE = heat_LE / heat_LE.sum(axis=1, keepdims=True)
    # No row takes an expert twice.
    return np.array([np.minimum(draw.multinomial(num_rows * top_k, shares), num_rows) for shares in shares_LE])
