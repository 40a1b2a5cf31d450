"""Which rows go to which shard. NumPy, because eight small torch calls would cost more than the sockets do.

Shapes: S shards that get rows, T rows of the step, R rows of one shard, K experts per token, P (row, expert) pairs.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moonshard.transport.contract import WireSpec

_FOREIGN = np.int32(-1)


class ShardRows(NamedTuple):
    """rows_R: indices of the rows the shard gets, None for all of them. ids_RK: -1 where another shard is asked.

    num_sums: rows of its answer.
    """

    shard: int
    rows_R: NDArray[np.int64] | None
    ids_RK: NDArray[np.int32]
    num_sums: int

    def places(self) -> NDArray[np.int64]:
        """row * K + slot of each id that is not -1, in order: what an answer with sums by expert tells of."""
        rows_P, slots_P = np.nonzero(self.ids_RK >= 0)
        rows_P = rows_P if self.rows_R is None else self.rows_R[rows_P]
        places_P: NDArray[np.int64] = rows_P * self.ids_RK.shape[1] + slots_P
        return places_P


def split_by_shard(ids_TK: NDArray[np.int32], shards_TK: NDArray[np.int32], spec: WireSpec) -> list[ShardRows]:
    """The shards that are asked for at least one expert of at least one row, in shard order. shards_TK: who is."""
    present = sorted(set(shards_TK.ravel().tolist()) - {-1})
    here_STK = shards_TK == np.array(present, shards_TK.dtype)[:, None, None]
    ids_STK = np.where(here_STK, ids_TK, _FOREIGN)
    if len(ids_TK) == 1:
        return [ShardRows(shard, None, ids_STK[i], spec.num_sums(ids_STK[i])) for i, shard in enumerate(present)]
    here_ST = here_STK.any(axis=2)
    return [_rows_of(shard, ids_STK[i], np.flatnonzero(here_ST[i]), spec) for i, shard in enumerate(present)]


def _rows_of(shard: int, ids_TK: NDArray[np.int32], rows_R: NDArray[np.int64], spec: WireSpec) -> ShardRows:
    if len(rows_R) == len(ids_TK):
        return ShardRows(shard, None, ids_TK, spec.num_sums(ids_TK))
    ids_RK = ids_TK[rows_R]
    return ShardRows(shard, rows_R, ids_RK, spec.num_sums(ids_RK))
