"""A cell's sizes and header templates as the native calls read them."""

import numpy as np

from moonshard.kernels.links import LinkShape
from moonshard.transport import wire
from moonshard.transport.contract import WireSpec


class Shape(LinkShape):
    """What the native calls need to know of a cell. `peer`: the attention worker's number, or the shard's."""

    def __init__(self, spec: WireSpec, peer: int, max_rows: int) -> None:
        super().__init__(
            row_bytes=wire.reply_bytes(spec, 1),
            experts_per_shard=spec.num_experts // spec.num_shards,
            num_shards=spec.num_shards,
            max_rows=max_rows,
            num_layers=len(spec.moe_layers),
        )
        self._layers = np.array(spec.moe_layers, np.int32)
        self.layers = self._layers.ctypes.data
        self.dispatch[:] = wire.pack_header(wire.dispatch_header(spec, peer, 0, 0, 0))
        self.reply[:] = wire.pack_header(wire.reply_header(spec, peer, 0, 0, 0))
