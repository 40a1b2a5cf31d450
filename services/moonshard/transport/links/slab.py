"""Memory for arriving messages, used again once the message has been answered: fresh pages cost more than the copy."""

import numpy as np
from torch import Tensor

from moonshard.transport import wire
from moonshard.transport.contract import WireSpec

SMALL_BYTES = 128 * 1024
_FREE_MAX = 8  # of each kind, small and large
_VIEWS_MAX = 16


class Slab:
    """`num_bytes` of memory that a message fills from its start, and the tensors that were made over it."""

    __slots__ = ("address", "array", "num_bytes", "views")

    def __init__(self, num_bytes: int) -> None:
        self.array: wire.Bytes = np.empty(num_bytes, np.uint8)
        self.address: int = self.array.ctypes.data
        self.num_bytes = num_bytes
        self.views: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def dispatch(self, spec: WireSpec, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """ids_RK, weights_RK and x_RD of the DISPATCH that fills the slab; kept in `views`."""
        if len(self.views) >= _VIEWS_MAX:
            self.views.clear()
        stop = wire.HEADER_BYTES + wire.dispatch_bytes(spec, num_rows)
        self.views[num_rows] = wire.split_dispatch(self.array[wire.HEADER_BYTES : stop], spec, num_rows)
        return self.views[num_rows]


class SlabPool:
    """Slabs in waiting. What is not given back is freed by whoever holds it last."""

    def __init__(self) -> None:
        self._small: list[Slab] = []
        self._large: list[Slab] = []

    def take(self, num_bytes: int = SMALL_BYTES) -> Slab:
        if num_bytes <= SMALL_BYTES:
            return self._small.pop() if self._small else Slab(SMALL_BYTES)
        for i, slab in enumerate(self._large):
            if slab.num_bytes >= num_bytes:
                return self._large.pop(i)
        self._large.clear()  # outgrown
        return Slab(num_bytes)

    def give(self, slab: Slab) -> None:
        free = self._small if slab.num_bytes == SMALL_BYTES else self._large
        if len(free) < _FREE_MAX:
            free.append(slab)
