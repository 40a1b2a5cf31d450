"""Where a shard's experts lie in its memory, layer by layer.

Shapes: L MoE layers, E logical experts.
"""

import numpy as np
from numpy.typing import NDArray

from moonshard.errors import ProtocolMismatch
from moonshard.transport.contract import WireSpec


class Slots:
    """slots_LE: the slot of each expert, -1 where it is not here. One thread writes; native calls read meanwhile."""

    def __init__(self, spec: WireSpec, experts: range, num_slots: int | None = None) -> None:
        """experts: those that lie in the first slots of every layer; num_slots: of a layer, as many when None."""
        self._spec, self._block = spec, experts
        self.num_slots = num_slots or len(experts)
        self.slots_LE: NDArray[np.int32] = np.full((len(spec.moe_layers), spec.num_experts), -1, np.int32)
        self.slots_LE[:, experts.start : experts.stop] = np.arange(len(experts))
        self._places = {layer: place for place, layer in enumerate(spec.moe_layers)}

    def of_layer(self, layer: int) -> NDArray[np.int32]:
        """A view of the layer's row."""
        row_E: NDArray[np.int32] = self.slots_LE[self._places[layer]]
        return row_E

    def held(self, layer: int) -> tuple[int, ...]:
        """The layer's experts, ascending."""
        return tuple(np.flatnonzero(self.of_layer(layer) >= 0).tolist())

    def check(self, layer: int, ids_RK: NDArray[np.int32]) -> None:
        """Raises ProtocolMismatch for ids that are not meant for this shard. With sums by expert any expert may have
        been here when the message left: what is not here any more is answered with NaN."""
        spec, found = self._spec, ids_RK[ids_RK != -1]
        known = range(spec.num_experts) if spec.sums == "expert" else self._block
        if not found.size:
            return
        inside = known.start <= found.min() and found.max() < known.stop
        if not inside or (spec.sums == "shard" and (self.of_layer(layer)[found] < 0).any()):
            raise ProtocolMismatch(f"dispatch: ids: expected those of {known} or -1, got others")

    def free(self, layer: int) -> list[int]:
        """Slots without an expert, ascending."""
        return sorted(set(range(self.num_slots)) - set(self.of_layer(layer).tolist()))
