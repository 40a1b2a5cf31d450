"""The slow obvious twin: shards are function calls. The other transports are tested against it bit by bit.

Shapes: T rows of a step, R rows of one shard, D hidden size, K experts per token.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moonshard.transport.contract import TransportStats, WireSpec, sum_by_expert, sum_in_shard_order
from moonshard.transport.routing_table import RoutingTable

Compute = Callable[[int, int, Tensor, Tensor, Tensor], Tensor]
"""(shard, layer, x_RD, ids_RK, weights_RK) -> y_RD: weighted sums of the shard's own experts; ids -1 are foreign.

With sums by expert y_PD: an output for each id that is not -1, in their order.
"""


@dataclass(slots=True)
class LocalHandle:
    step: int
    layer: int
    x_TD: Tensor
    topk_ids_TK: Tensor
    topk_weights_TK: Tensor


class LocalDispatcher:
    """Dispatcher of one process: no links, no waiting, the same splitting and the same order of summation."""

    def __init__(self, spec: WireSpec, compute: Compute, table: RoutingTable | None = None) -> None:
        """table: where experts are; None: in contiguous blocks."""
        self.spec = spec
        self.table = table or RoutingTable(spec)
        self._step = -1
        self.stats = TransportStats.for_peers(spec.num_shards)
        self._compute = compute
        self._woken = threading.Event()

    def begin_step(self, num_rows: int) -> None:
        self._step += 1

    def dispatch(self, layer: int, x_TD: Tensor, topk_ids_TK: Tensor, topk_weights_TK: Tensor) -> LocalHandle:
        self.stats.num_dispatches += 1
        self.stats.num_rows += x_TD.shape[0]
        return LocalHandle(self._step, layer, x_TD.to(self.spec.row_dtype), topk_ids_TK, topk_weights_TK.float())

    def combine(self, handle: LocalHandle) -> Tensor:
        num_rows, hidden_size = handle.x_TD.shape
        ids_TK = handle.topk_ids_TK.to("cpu", torch.int32)
        shards_TK = torch.from_numpy(self.table.choose(handle.layer, handle.step, ids_TK.numpy()))
        rows, places = [], []
        for shard in range(self.spec.num_shards):
            here_TK = shards_TK == shard
            if bool(here_TK.any()):
                own_TK = torch.where(here_TK, ids_TK, -1)
                rows_R = here_TK.any(dim=1).nonzero().squeeze(1).to(handle.x_TD.device)
                y_RD = self._run_shard(shard, handle, rows_R, own_TK.to(handle.x_TD.device))
                rows.append((rows_R, y_RD))
                places.append((here_TK.flatten().nonzero().squeeze(1).to(handle.x_TD.device), y_RD))
        if self.spec.sums == "expert":
            return sum_by_expert(places, num_rows, self.spec.top_k, hidden_size)
        return sum_in_shard_order(rows, num_rows, hidden_size, handle.x_TD.device)

    def _run_shard(self, shard: int, handle: LocalHandle, rows_R: Tensor, own_TK: Tensor) -> Tensor:
        x_RD, ids_RK, weights_RK = handle.x_TD[rows_R], own_TK[rows_R], handle.topk_weights_TK[rows_R]
        return self._compute(shard, handle.layer, x_RD, ids_RK, weights_RK).to(self.spec.row_dtype)

    def idle(self, timeout_s: float) -> None:
        self._woken.wait(timeout_s)
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        self._woken.set()
