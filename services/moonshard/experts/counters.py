"""How many rows each expert of this shard has served: one array, one add per batch."""

import numpy as np
import numpy.typing as npt

from moonshard.kernels.tally import Tally


class LoadCounters:
    """The shard's tally by layer number and logical expert.

    Counted at the receiver, so that rows are counted once however many attention workers send them.
    """

    def __init__(self, moe_layers: tuple[int, ...], experts: range) -> None:
        self.moe_layers = moe_layers
        self.experts = experts
        self.tally = Tally(len(moe_layers), len(experts))
        self.num_batches = 0
        self.num_rows = 0
        self._index_of = {layer: i for i, layer in enumerate(moe_layers)}

    @property
    def rows_LE(self) -> npt.NDArray[np.int64]:
        """[i, j]: rows served by local expert j in the i-th MoE layer, since start."""
        return self.tally.rows_LE

    def add(self, layer: int, topk_ids_RK: npt.NDArray[np.int32]) -> None:
        """Count a batch's (row, expert) pairs; -1 marks experts that live elsewhere."""
        self.tally.add(self._index_of[layer], topk_ids_RK[topk_ids_RK >= 0] - self.experts.start)
        self.num_batches += 1
        self.num_rows += len(topk_ids_RK)
