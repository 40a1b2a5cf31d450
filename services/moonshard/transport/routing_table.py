"""Which shard computes a row's expert: a table of copies for every layer, published by the router in generations.

Shapes: L MoE layers, E logical experts, C shards, the most copies there can be, T rows, K experts per token.
"""

from collections.abc import Mapping, Sequence
from copy import copy

import numpy as np
from numpy.typing import NDArray

from moonshard.errors import ConfigError
from moonshard.placement import Layer, contiguous
from moonshard.transport.contract import WireSpec

Ids = NDArray[np.int32]


class RoutingTable:
    """copies_LE: how many shards hold an expert; shards_LEC: their numbers, ascending, as many as there are shards.

    Unchanged once it is made.
    """

    def __init__(self, spec: WireSpec, layers: Sequence[Layer] | None = None, generation: int = 0) -> None:
        """layers: one for each MoE layer, in order; None: contiguous blocks everywhere.

        Raises ConfigError where an expert has no copy, or where sums by shard would depend on the placement.
        """
        self.generation, self._spec = generation, spec
        self._places = {layer: place for place, layer in enumerate(spec.moe_layers)}
        shape = len(spec.moe_layers), spec.num_experts
        self.copies_LE: Ids = np.zeros(shape, np.int32)
        self.shards_LEC: Ids = np.zeros((*shape, spec.num_shards), np.int32)
        if layers is None:
            self.copies_LE[:] = 1
            self.shards_LEC[:, :, 0] = np.arange(spec.num_experts) // (spec.num_experts // spec.num_shards)
        elif len(layers) != len(spec.moe_layers):
            raise ConfigError("placement", f"must have {len(spec.moe_layers)} layers, got {len(layers)}")
        else:
            for number, layer in zip(spec.moe_layers, layers, strict=True):
                self._put(number, layer)

    def changed(self, layers: Mapping[int, Layer], generation: int) -> "RoutingTable":
        """A table with other layers, by their numbers; this one stays as it is."""
        table = copy(self)
        table.generation = generation
        table.copies_LE, table.shards_LEC = self.copies_LE.copy(), self.shards_LEC.copy()
        for number, layer in layers.items():
            table._put(number, layer)
        return table

    def _put(self, number: int, layer: Layer) -> None:
        spec, place = self._spec, self._places[number]
        if spec.sums == "shard" and layer != contiguous(spec.num_experts, spec.num_shards):
            raise ConfigError("placement", "sums by shard need contiguous blocks: set experts.redundant_slots")
        held_SE = np.zeros((spec.num_shards, spec.num_experts), bool)
        for shard, experts in enumerate(layer):
            held_SE[shard, list(experts)] = True
        self.copies_LE[place] = held_SE.sum(axis=0)
        if not self.copies_LE[place].all():
            raise ConfigError("placement", f"expert {self.copies_LE[place].argmin()} has no copy in layer {number}")
        # Shards that hold an expert come first, in order; the rest of a line is not read.
        self.shards_LEC[place] = np.argsort(~held_SE, axis=0, kind="stable").T

    def without(self, shards: Sequence[int]) -> "RoutingTable":
        """A table by which these shards are asked only for what no other shard has."""
        table = copy(self)
        num_shards = self.shards_LEC.shape[2]
        held_LEC = np.arange(num_shards) < self.copies_LE[:, :, None]
        kept_LEC = held_LEC & ~np.isin(self.shards_LEC, list(shards))
        kept_LEC = np.where(kept_LEC.any(axis=2, keepdims=True), kept_LEC, held_LEC)
        order_LEC = np.argsort(~kept_LEC, axis=2, kind="stable")
        table.copies_LE = kept_LEC.sum(axis=2, dtype=np.int32)
        table.shards_LEC = np.ascontiguousarray(np.take_along_axis(self.shards_LEC, order_LEC, axis=2))
        return table

    def choose(self, layer: int, step: int, ids_TK: Ids) -> Ids:
        """The shard that computes each (row, expert); -1 where the id is. Copies take turns by step, row and expert,
        as in native/link_courier.cpp."""
        place = self._places[layer]
        copies_TK = self.copies_LE[place][ids_TK]
        rows_T = np.arange(len(ids_TK), dtype=np.int64)
        turns_TK = (step + rows_T[:, None] + ids_TK) % copies_TK
        return np.where(ids_TK < 0, np.int32(-1), self.shards_LEC[place, ids_TK, turns_TK])
