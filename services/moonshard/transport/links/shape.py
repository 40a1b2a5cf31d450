"""A cell's sizes and header templates as the native calls read them."""

import numpy as np

from moonshard.kernels.links import LinkShape
from moonshard.transport import wire
from moonshard.transport.contract import WireSpec
from moonshard.transport.routing_table import RoutingTable
from moonshard.transport.slots import Slots


class Shape(LinkShape):
    """What the native calls need to know of a cell. `peer`: the attention worker's number, or the shard's."""

    def __init__(self, spec: WireSpec, peer: int, max_rows: int) -> None:
        super().__init__(
            row_bytes=wire.reply_bytes(spec, 1),
            num_experts=spec.num_experts,
            num_shards=spec.num_shards,
            max_rows=max_rows,
            num_layers=len(spec.moe_layers),
            sums_by_expert=spec.sums == "expert",
        )
        self._layers = np.array(spec.moe_layers, np.int32)
        self.layers = self._layers.ctypes.data
        self.dispatch[:] = wire.pack_header(wire.dispatch_header(spec, peer, 0, 0, 0))
        self.reply[:] = wire.pack_header(wire.reply_header(spec, peer, 0, 0, 0))

    def route_by(self, table: RoutingTable) -> None:
        """For a courier."""
        self._table = table
        self.copies, self.shards = table.copies_LE.ctypes.data, table.shards_LEC.ctypes.data
        self.copies_max = table.shards_LEC.shape[2]

    def hold(self, slots: Slots) -> None:
        """For a shard."""
        self._slots = slots
        self.slots = slots.slots_LE.ctypes.data
