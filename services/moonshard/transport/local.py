"""The slow obvious twin: shards are function calls. The other transports are tested against it bit by bit.

Shapes: T rows of a step, R rows of one shard, D hidden size, K experts per token.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from moonshard.transport.contract import TransportStats, WireSpec, mask_foreign, sum_in_shard_order

Compute = Callable[[int, int, Tensor, Tensor, Tensor], Tensor]
"""(shard, layer, x_RD, ids_RK, weights_RK) -> y_RD: weighted sums of the shard's own experts; ids -1 are foreign."""


@dataclass(slots=True)
class LocalHandle:
    layer: int
    x_TD: Tensor
    topk_ids_TK: Tensor
    topk_weights_TK: Tensor


class LocalDispatcher:
    """Dispatcher of one process: no links, no waiting, the same splitting and the same order of summation."""

    def __init__(self, spec: WireSpec, compute: Compute) -> None:
        self.spec = spec
        self.stats = TransportStats.for_peers(spec.num_shards)
        self._compute = compute
        self._woken = threading.Event()

    def begin_step(self, num_rows: int) -> None:
        pass

    def dispatch(self, layer: int, x_TD: Tensor, topk_ids_TK: Tensor, topk_weights_TK: Tensor) -> LocalHandle:
        self.stats.num_dispatches += 1
        self.stats.num_rows += x_TD.shape[0]
        return LocalHandle(layer, x_TD.to(self.spec.row_dtype), topk_ids_TK, topk_weights_TK.float())

    def combine(self, handle: LocalHandle) -> Tensor:
        parts = [self._run_shard(shard, handle) for shard in range(self.spec.num_shards)]
        return sum_in_shard_order(
            [part for part in parts if part], handle.x_TD.shape[0], self.spec.hidden_size, handle.x_TD.device
        )

    def _run_shard(self, shard: int, handle: LocalHandle) -> tuple[Tensor, Tensor] | None:
        ids_TK = mask_foreign(handle.topk_ids_TK, self.spec.experts_of(shard))
        rows = (ids_TK >= 0).any(dim=1).nonzero().squeeze(1)
        if not len(rows):
            return None
        x_RD, ids_RK, weights_RK = handle.x_TD[rows], ids_TK[rows], handle.topk_weights_TK[rows]
        return rows, self._compute(shard, handle.layer, x_RD, ids_RK, weights_RK).to(self.spec.row_dtype)

    def idle(self, timeout_s: float) -> None:
        self._woken.wait(timeout_s)
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        self._woken.set()
