"""One expert shard: its experts of every MoE layer, and what they have carried."""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from moonshard.experts.counters import LoadCounters
from moonshard.model.native_experts import NativeExpertStack
from moonshard.transport.contract import ExpertBatch
from moonshard.transport.links import ExpertTable


class Stack(Protocol):
    """The experts of one layer, on torch's operators or on native kernels."""

    def forward(self, x_RD: Tensor, topk_ids_RK: Tensor, topk_weights_RK: Tensor) -> Tensor:
        """Weighted sum of these experts per row, FP32 [R, D]; ids are logical, -1 is elsewhere."""


class Shard:
    """stacks: one per MoE layer, all with the same range of logical experts."""

    def __init__(self, stacks: Mapping[int, Stack], experts: range) -> None:
        self._stacks = stacks
        self.counters = LoadCounters(tuple(sorted(stacks)), experts)

    def compute(self, batch: ExpertBatch) -> Tensor:
        """Weighted sum of this shard's experts per row: y_RD, float32. Counts the rows."""
        y_RD = self._stacks[batch.layer].forward(batch.x_RD, batch.topk_ids_RK, batch.topk_weights_RK)
        self.counters.add(batch.layer, batch.topk_ids_RK.cpu().numpy())
        return y_RD

    def table(self, observe: Callable[[int, float], None]) -> ExpertTable | None:
        """For links that answer without Python, where all layers are on native kernels.

        observe: called with (rows, seconds) of each batch computed there. Counts the rows as `compute` does.
        """
        stacks = {layer: stack for layer, stack in self._stacks.items() if isinstance(stack, NativeExpertStack)}
        if not stacks or len(stacks) < len(self._stacks):
            return None

        def count(rows: int, compute_s: float) -> None:
            self.counters.num_batches += 1
            self.counters.num_rows += rows
            observe(rows, compute_s)

        one = next(iter(stacks.values()))
        layers = {layer: stack.kernels for layer, stack in stacks.items()}
        return ExpertTable(one.pool, layers, one.precision, self.counters.tally, count)
