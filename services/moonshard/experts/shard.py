"""One expert shard: its experts of every MoE layer, and what they have carried."""

from torch import Tensor

from moonshard.experts.counters import LoadCounters
from moonshard.model.experts import ExpertStack
from moonshard.transport.contract import ExpertBatch


class Shard:
    """stacks: one per MoE layer, all with the same range of logical experts."""

    def __init__(self, stacks: dict[int, ExpertStack], experts: range) -> None:
        self._stacks = stacks
        self.counters = LoadCounters(tuple(sorted(stacks)), experts)

    def compute(self, batch: ExpertBatch) -> Tensor:
        """Weighted sum of this shard's experts per row: y_RD, float32. Counts the rows."""
        y_RD = self._stacks[batch.layer].forward(batch.x_RD, batch.topk_ids_RK, batch.topk_weights_RK)
        self.counters.add(batch.layer, batch.topk_ids_RK.cpu().numpy())
        return y_RD
