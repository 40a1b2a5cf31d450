"""What the experts of one shard have served, in plain arrays that Python and the native link loop add to.

Shapes: L MoE layers, E experts of the shard, B size classes, K experts per row.
"""

import numpy as np
from numpy.typing import NDArray

NUM_SIZES = 18
SIZE_BOUNDS = tuple(1 << i for i in range(NUM_SIZES - 1))
"""Upper bounds of the size classes of `sizes_B`, the last class is open: 1, 2, 4, ... 65536 rows, more."""


class Tally:
    """Totals since start. One writer; readers need no lock, every cell only grows.

    rows_LE: rows served by an expert. active_L, batches_L: experts with at least one row, summed over the batches of a
    layer, and those batches. sizes_B: how often an expert had so many rows in one batch.
    """

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self.rows_LE: NDArray[np.int64] = np.zeros((num_layers, num_experts), np.int64)
        self.active_L: NDArray[np.int64] = np.zeros(num_layers, np.int64)
        self.batches_L: NDArray[np.int64] = np.zeros(num_layers, np.int64)
        self.sizes_B: NDArray[np.int64] = np.zeros(NUM_SIZES, np.int64)
        self.scratch_E: NDArray[np.int64] = np.zeros(num_experts, np.int64)

    def add(self, layer_index: int, local_ids: NDArray[np.int32]) -> None:
        """Count one batch; local_ids: a local expert for each (row, expert) pair. The twin of the native `count`."""
        rows_E = np.bincount(local_ids, minlength=self.rows_LE.shape[1])
        active = rows_E[rows_E > 0]
        self.rows_LE[layer_index] += rows_E
        self.active_L[layer_index] += len(active)
        self.batches_L[layer_index] += 1
        classes = np.minimum(np.frexp(active - 1.0)[1], NUM_SIZES - 1)  # bit length of rows - 1
        self.sizes_B += np.bincount(classes, minlength=NUM_SIZES)
