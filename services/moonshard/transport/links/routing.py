"""Which rows go to which shard. NumPy, because eight small torch calls would cost more than the sockets do."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moonshard.transport.contract import WireSpec


class ShardRows(NamedTuple):
    """rows_R: indices of the rows the shard gets, None for all of them. ids_RK: -1 where the expert lives elsewhere."""

    shard: int
    rows_R: NDArray[np.int64] | None
    ids_RK: NDArray[np.int32]


def split_by_shard(ids_TK: NDArray[np.int32], spec: WireSpec) -> list[ShardRows]:
    """The shards that hold at least one expert of at least one row, in shard order."""
    shards_TK = ids_TK // (spec.num_experts // spec.num_shards)
    present = sorted({shard for shard in shards_TK.ravel().tolist() if shard >= 0})
    assert not present or present[-1] < spec.num_shards, f"expert ids reach {ids_TK.max()} of {spec.num_experts}"
    return [_rows_of(shard, ids_TK, shards_TK == shard) for shard in present]


def _rows_of(shard: int, ids_TK: NDArray[np.int32], here_TK: NDArray[np.bool_]) -> ShardRows:
    ids_TK = np.where(here_TK, ids_TK, np.int32(-1))
    if len(ids_TK) == 1:
        return ShardRows(shard, None, ids_TK)
    rows_R = np.flatnonzero(here_TK.any(axis=1))
    if len(rows_R) == len(ids_TK):
        return ShardRows(shard, None, ids_TK)
    return ShardRows(shard, rows_R, ids_TK[rows_R])
