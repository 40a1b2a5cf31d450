"""Which shard computes a row's expert: a table of copies for every layer, published by the router in generations.

Shapes: L MoE layers, E logical experts, C copies at most, T rows, K experts per token.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moonshard.errors import ConfigError
from moonshard.placement import Layer, contiguous
from moonshard.transport.contract import WireSpec

Ids = NDArray[np.int32]


class RoutingTable:
    """copies_LE: how many shards hold an expert; shards_LEC: their numbers, ascending. Unchanged once it is made."""

    def __init__(self, spec: WireSpec, layers: Sequence[Layer] | None = None, generation: int = 0) -> None:
        """layers: one for each MoE layer, in order; None: contiguous blocks everywhere.

        Raises ConfigError where an expert has no copy, or where sums by shard would depend on the placement.
        """
        blocks = contiguous(spec.num_experts, spec.num_shards)
        layers = [blocks] * len(spec.moe_layers) if layers is None else layers
        if spec.sums == "shard" and any(layer != blocks for layer in layers):
            raise ConfigError(
                "placement", "sums by shard need contiguous blocks: experts.redundant_slots must be above 0"
            )
        if len(layers) != len(spec.moe_layers):
            raise ConfigError("placement", f"must have {len(spec.moe_layers)} layers, got {len(layers)}")
        self.generation = generation
        held_LSE = np.zeros((len(layers), spec.num_shards, spec.num_experts), bool)
        for place, layer in enumerate(layers):
            for shard, experts in enumerate(layer):
                held_LSE[place, shard, list(experts)] = True
        self.copies_LE: Ids = held_LSE.sum(axis=1, dtype=np.int32)
        if not self.copies_LE.all():
            place, expert = np.argwhere(self.copies_LE == 0)[0]
            raise ConfigError("placement", f"expert {expert} has no copy in layer {spec.moe_layers[place]}")
        # Shards that hold an expert come first, in order; the rest of a line is not read.
        order_LSE = np.argsort(~held_LSE, axis=1, kind="stable")[:, : self.copies_LE.max()]
        self.shards_LEC: Ids = np.ascontiguousarray(order_LSE.transpose(0, 2, 1), np.int32)
        self._places = {layer: place for place, layer in enumerate(spec.moe_layers)}

    def choose(self, layer: int, step: int, ids_TK: Ids) -> Ids:
        """The shard that computes each (row, expert); -1 where the id is. Copies take turns by step, row and expert,
        as in native/link_courier.cpp."""
        place = self._places[layer]
        copies_TK = self.copies_LE[place][ids_TK]
        if self.shards_LEC.shape[2] == 1:
            shards_TK = self.shards_LEC[place, ids_TK, 0]
        else:
            rows_T = np.arange(len(ids_TK), dtype=np.int64)
            turns_TK = (step + rows_T[:, None] + ids_TK) % copies_TK
            shards_TK = self.shards_LEC[place, ids_TK, turns_TK]
        return np.where(ids_TK < 0, np.int32(-1), shards_TK)
