"""A small load: two layers, eight experts, two shards, one very hot expert."""

import numpy as np

from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.load.matrix import ExpertLoad, from_response

ROWS = [[1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 90, 2, 2, 2, 2, 2]]


def small_load(rows: list[list[int]] = ROWS, taken_at_s: float = 1000.0) -> ExpertLoad:
    rows_LE = np.array(rows)
    shards = [
        pb.ShardLoad(
            rank=rank, experts=range(4 * rank, 4 * rank + 4), rows=rows_LE[:, 4 * rank : 4 * rank + 4].sum(axis=1)
        )
        for rank in range(2)
    ]
    flat = rows_LE.reshape(-1).tolist()
    response = pb.GetLoadResponse(
        model_name="small", span_s=10.0, layers=[3, 4], num_experts=8, rows=flat, shards=shards, taken_at_s=taken_at_s
    )
    return from_response(response)
