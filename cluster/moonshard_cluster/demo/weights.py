"""Seeded random weights, drawn by table: a 16-bit random number picks one of 65536 quantiles of the distribution.

That is several billion weights a second with plain numpy, so the launcher needs no torch to make a checkpoint.
Only raw words of the bit generator are used: their stream is fixed for all versions of numpy.
"""

from collections.abc import Iterator
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moonshard.model.inventory import TensorSpec
from moonshard_cluster.demo.spec import DemoSpec

Array = NDArray[Any]

# Draws per piece: keeps memory small for the largest tensor and the work inside the cache.
PIECE = 1 << 18
# Of quantised weights before rounding: the largest of 32 is then about 7.5, as quantising a group makes it.
INT4_STD = 3.5
# Rows of the head that are quiet, so that a demo never says <|reserved_token_9|> or rings the terminal's bell: the
# control bytes, which are the first ids, and the special tokens after [BOS], [EOS] and <|im_end|>.
NUM_CONTROL_BYTES = 32
NUM_LOUD_SPECIAL = 3
QUIET = 0.1
# Spread of the logarithm of the groups' scales.
SCALE_SPREAD = 0.15


class Weights:
    """Draws tensors one after another; the same seed, stream and order of tensors give the same bytes."""

    def __init__(self, spec: DemoSpec, stream: int) -> None:
        self._spec = spec
        self._bits = np.random.SFC64([spec.seed, stream])

    def tensor(self, tensor: TensorSpec) -> Iterator[bytes | memoryview]:
        """The bytes of one tensor, in pieces."""
        if tensor.name.endswith("weight_shape"):
            yield np.array(self._logical_shape(tensor), dtype=np.int32).tobytes()
            return
        for table, count in self._parts(tensor):
            for start in range(0, count, PIECE):
                yield self._draw(table, min(PIECE, count - start)).data.cast("B")

    def _parts(self, tensor: TensorSpec) -> list[tuple[Array, int]]:
        """(table, draws) of the stretches that make up a tensor."""
        table = self._table(tensor)
        count = tensor.num_bytes // table.itemsize
        if not tensor.name.endswith("lm_head.weight"):
            return [(table, count)]
        _, std = self._distribution(tensor)
        quiet, width = _normal(0.0, QUIET * std, tensor.dtype), tensor.shape[1]
        first, end = NUM_CONTROL_BYTES * width, (self._spec.special_base + NUM_LOUD_SPECIAL) * width
        return [(quiet, first), (table, end - first), (quiet, count - end)]

    def _draw(self, table: Array, count: int) -> Array:
        words = self._bits.random_raw((count + 3) // 4)
        return np.take(table, words.view(np.uint16)[:count])

    def _table(self, tensor: TensorSpec) -> Array:
        """What a 16-bit number stands for in this tensor: two INT4 weights, a BF16 or a FP32 number."""
        if tensor.name.endswith("weight_packed"):
            return _int4_pairs()
        if tensor.name.endswith("weight_scale"):
            fan_in = self._logical_shape(tensor)[1]
            return _scales(self._layer_gain(tensor.name) * fan_in**-0.5)
        mean, std = self._distribution(tensor)
        return _normal(mean, std, tensor.dtype)

    def _distribution(self, tensor: TensorSpec) -> tuple[float, float]:
        """(mean, std). 1 / sqrt(fan in) keeps activations near variance one."""
        name, unit = tensor.name, tensor.shape[-1] ** -0.5
        if name.endswith("norm.weight"):
            return 1.0, 0.1
        if name.endswith("e_score_correction_bias"):
            return 0.0, 0.02
        if name.endswith("embed_tokens.weight"):
            return 0.0, 0.5
        if name.endswith("lm_head.weight"):
            return 0.0, 2 * unit
        if name.endswith(("mlp.gate.weight", "q_b_proj.weight")):
            return 0.0, 1.5 * unit
        return 0.0, self._layer_gain(name) * unit

    def _layer_gain(self, name: str) -> float:
        return self._spec.calm if ".o_proj." in name or ".down_proj." in name else 1.0

    def _logical_shape(self, tensor: TensorSpec) -> tuple[int, int]:
        width, hidden = self._spec.moe_intermediate_size, self._spec.hidden_size
        return (hidden, width) if ".down_proj." in tensor.name else (width, hidden)


@lru_cache(maxsize=1)
def _quantiles() -> NDArray[np.float64]:
    """65536 quantiles of the standard normal distribution, symmetric around zero."""
    normal = NormalDist()
    upper = np.array([normal.inv_cdf(0.5 + (place + 0.5) / 65536) for place in range(32768)])
    return np.concatenate((-upper[::-1], upper))


@lru_cache(maxsize=64)
def _normal(mean: float, std: float, dtype: str) -> Array:
    values = (mean + std * _quantiles()).astype(np.float32)
    return values if dtype == "F32" else _to_bfloat16(values)


@lru_cache(maxsize=64)
def _scales(weight_std: float) -> Array:
    """BF16 scales of groups, log-normal, such that the dequantised weights have this standard deviation."""
    spread = np.exp(SCALE_SPREAD * _quantiles())
    root_mean_square = np.sqrt(np.mean(spread**2) * np.mean(_int4_values() ** 2.0))
    return _to_bfloat16((weight_std * spread / root_mean_square).astype(np.float32))


@lru_cache(maxsize=1)
def _int4_values() -> NDArray[np.int64]:
    """256 quantiles of rounded normal weights in -7..7: bell-shaped, and symmetric so that their mean is zero."""
    normal = NormalDist(sigma=INT4_STD)
    upper = [min(round(normal.inv_cdf(0.5 + (place + 0.5) / 256)), 7) for place in range(128)]
    return np.array([-value for value in reversed(upper)] + upper)


@lru_cache(maxsize=1)
def _int4_pairs() -> Array:
    """The byte that packs two weights (specification 4.2), for every pair of quantiles."""
    nibbles = _int4_values() + 8
    return (nibbles[:, None] << 4 | nibbles[None, :]).astype(np.uint8).reshape(-1)


def _to_bfloat16(values: Array) -> Array:
    """Rounded to nearest even, as 16-bit words."""
    bits = values.view(np.uint32)
    rounded: Array = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return rounded
