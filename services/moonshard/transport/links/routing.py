"""Which rows go to which shard. NumPy, because eight small torch calls would cost more than the sockets do.

Shapes: S shards that get rows, T rows of the step, R rows of one shard, K experts per token.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moonshard.transport.contract import WireSpec

_FOREIGN = np.int32(-1)


class ShardRows(NamedTuple):
    """rows_R: indices of the rows the shard gets, None for all of them. ids_RK: -1 where the expert lives elsewhere."""

    shard: int
    rows_R: NDArray[np.int64] | None
    ids_RK: NDArray[np.int32]


def split_by_shard(ids_TK: NDArray[np.int32], spec: WireSpec) -> list[ShardRows]:
    """The shards that hold at least one expert of at least one row, in shard order."""
    shards_TK = ids_TK // (spec.num_experts // spec.num_shards)
    present = sorted(set(shards_TK.ravel().tolist()) - {-1})
    assert not present or present[-1] < spec.num_shards, f"expert ids reach {ids_TK.max()} of {spec.num_experts}"
    here_STK = shards_TK == np.array(present, shards_TK.dtype)[:, None, None]
    ids_STK = np.where(here_STK, ids_TK, _FOREIGN)
    if len(ids_TK) == 1:
        return [ShardRows(shard, None, ids_STK[i]) for i, shard in enumerate(present)]
    here_ST = here_STK.any(axis=2)
    return [_rows_of(shard, ids_STK[i], np.flatnonzero(here_ST[i])) for i, shard in enumerate(present)]


def _rows_of(shard: int, ids_TK: NDArray[np.int32], rows_R: NDArray[np.int64]) -> ShardRows:
    if len(rows_R) == len(ids_TK):
        return ShardRows(shard, None, ids_TK)
    return ShardRows(shard, rows_R, ids_TK[rows_R])
