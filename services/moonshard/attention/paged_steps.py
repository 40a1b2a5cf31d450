"""A step plan as the native kernels read it: block tables, positions and slots, built once for all layers.

T rows of the step, in plan order; B sequences, M blocks of the longest.
"""

import numpy as np
import torch

from moonshard.attention.kv_cache import LatentCache
from moonshard.attention.plan import StepPlan
from moonshard.kernels.attention import PagedStep


def make_paged_step(cache: LatentCache, plan: StepPlan) -> PagedStep:
    """What `NativeDecoder.forward` needs to run the plan."""
    size = cache.block_size
    positions_T = np.concatenate([np.arange(c.start, c.start + c.length) for c in plan.chunks])
    sequence_T = np.repeat(np.arange(len(plan.chunks), dtype=np.int32), [c.length for c in plan.chunks])
    tables = [c.sequence.block_table[: -(-(c.start + c.length) // size)] for c in plan.chunks]
    blocks_BM = np.zeros((len(tables), max(map(len, tables), default=0)), np.int32)
    for line, table in zip(blocks_BM, tables, strict=True):
        line[: len(table)] = table
    written_T = blocks_BM[sequence_T, positions_T // size] * size + positions_T % size
    return PagedStep(
        written_T=torch.from_numpy(written_T.astype(np.int32)),
        sequence_T=torch.from_numpy(sequence_T),
        visible_T=torch.from_numpy((positions_T + 1).astype(np.int32)),
        blocks_BM=torch.from_numpy(blocks_BM),
        block_size=size,
        cache_LSC=cache.slots_LSC,
    )
