"""One expert shard: its experts of every MoE layer, and what they have carried."""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from moonshard.experts.counters import LoadCounters
from moonshard.experts.sentinel import Weights
from moonshard.model.native_experts import NativeExpertStack
from moonshard.transport.contract import ExpertBatch
from moonshard.transport.links import ExpertTable
from moonshard.transport.slots import Slots


class Stack(Protocol):
    """The experts of one layer, on torch's operators or on native kernels."""

    def forward(self, x_RD: Tensor, topk_ids_RK: Tensor, topk_weights_RK: Tensor) -> Tensor:
        """Weighted sum of these experts per row, FP32 [R, D]; ids are logical, -1 is elsewhere."""

    def forward_apart(self, x_RD: Tensor, topk_ids_RK: Tensor, topk_weights_RK: Tensor, slots_E: Tensor) -> Tensor:
        """Weighted output of each id that is not -1, FP32 [P, D]; slots_E: where each logical expert lies."""

    def memory_of(self, slot: int) -> tuple[Tensor, ...]:
        """What one expert's weights take, by its place in the stack."""


class Shard:
    """stacks: one per MoE layer, all with the same range of logical experts at the start.

    slots: where experts lie, if they may move; then outputs stay apart and any logical expert may be counted.
    """

    def __init__(self, stacks: Mapping[int, Stack], experts: range, slots: Slots | None = None) -> None:
        self._stacks = stacks
        self._experts = experts
        self._slots = slots
        counted = range(slots.slots_LE.shape[1]) if slots else experts
        self.counters = LoadCounters(tuple(sorted(stacks)), counted)

    def weights(self) -> Iterator[Weights]:
        """Every expert of every layer and where it lies."""
        for layer in self.counters.moe_layers:
            for expert in self.counters.experts:
                if found := self.look(layer, expert):
                    yield found

    def look(self, layer: int, expert: int) -> Weights | None:
        """Where an expert lies; None when it is not here."""
        if self._slots:
            slot = int(self._slots.of_layer(layer)[expert])
        else:
            slot = expert - self._experts.start if expert in self._experts else -1
        return Weights(layer, expert, self._stacks[layer].memory_of(slot)) if slot >= 0 else None

    def compute(self, batch: ExpertBatch) -> Tensor:
        """Weighted sum of this shard's experts per row: y_RD, float32; or each output apart. Counts the rows."""
        stack, asked = self._stacks[batch.layer], (batch.x_RD, batch.topk_ids_RK, batch.topk_weights_RK)
        if self._slots:
            y_RD = stack.forward_apart(*asked, torch.from_numpy(self._slots.of_layer(batch.layer)))
        else:
            y_RD = stack.forward(*asked)
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
        return ExpertTable(one.pool, layers, one.precision, self.counters.tally, self.counters.experts, count)
