"""Messages of expert load to the router's nouns and back. Pure."""

from typing import Any

from moonshard.router.load import LoadMatrix, ShardWindow
from moonshard.v1 import control_pb2 as pb


def window_from_load(load: pb.ExpertLoad) -> ShardWindow:
    return ShardWindow(load.span_s, tuple(load.layers), tuple(load.experts), tuple(load.rows))


def load_response(matrix: LoadMatrix, **rest: Any) -> pb.GetLoadResponse:
    """rest: the fields that the matrix does not know."""
    shards = [pb.ShardLoad(rank=rank, rows=it.rows, experts=it.experts) for rank, it in matrix.shards.items()]
    return pb.GetLoadResponse(
        span_s=matrix.span_s,
        layers=matrix.layers,
        num_experts=matrix.num_experts,
        rows=matrix.rows,
        shards=shards,
        **rest,
    )
