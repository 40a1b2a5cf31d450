"""How many rows each expert of this shard has served: one array, one add per batch."""

import numpy as np
import numpy.typing as npt


class LoadCounters:
    """rows_LE[i, j]: rows served by local expert j in the i-th MoE layer, since start.

    Counted at the receiver, so that rows are counted once however many attention workers send them.
    """

    def __init__(self, moe_layers: tuple[int, ...], experts: range) -> None:
        self.moe_layers = moe_layers
        self.experts = experts
        self.rows_LE: npt.NDArray[np.int64] = np.zeros((len(moe_layers), len(experts)), dtype=np.int64)
        self.num_batches = 0
        self.num_rows = 0
        self._index_of = {layer: i for i, layer in enumerate(moe_layers)}

    def add(self, layer: int, topk_ids_RK: npt.NDArray[np.int32]) -> None:
        """Count a batch's (row, expert) pairs; -1 marks experts that live elsewhere."""
        local = topk_ids_RK[topk_ids_RK >= 0] - self.experts.start
        self.rows_LE[self._index_of[layer]] += np.bincount(local, minlength=len(self.experts))
        self.num_batches += 1
        self.num_rows += len(topk_ids_RK)
