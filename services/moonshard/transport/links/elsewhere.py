"""Rows of a lost shard whose experts have copies at other shards: these compute them, with the same bits.

Only where shards answer by expert: a sum by shard could be had from that shard alone.
"""

from collections.abc import Callable, Sequence

import torch

from moonshard.transport.contract import WireSpec
from moonshard.transport.links.handle import LinkHandle
from moonshard.transport.routing_table import RoutingTable


class Elsewhere:
    """dispatch: sends a handle's rows; wait: returns when all of them are answered, given when the wait began."""

    def __init__(
        self, spec: WireSpec, dispatch: Callable[[LinkHandle], None], wait: Callable[[LinkHandle, float], None]
    ) -> None:
        self._spec, self._dispatch, self._wait = spec, dispatch, wait
        self._made: tuple[RoutingTable, tuple[int, ...], RoutingTable] | None = None

    def table(self, table: RoutingTable, lost: Sequence[int]) -> RoutingTable:
        """By which the lost shards are asked for nothing that another shard has."""
        if not lost or self._spec.sums == "shard":
            return table
        if self._made is None or self._made[0] is not table or self._made[1] != tuple(lost):
            self._made = table, tuple(lost), table.without(lost)
        return self._made[2]

    def answer(self, handle: LinkHandle, shard: int, lost: Sequence[int], started: float) -> bool:
        """Get the lost shard's answer from others; False where one of its experts has no other copy."""
        asked, table = handle.routes[shard], self.table(handle.table, lost)
        if table is handle.table or set(table.choose(handle.layer, handle.step, asked.ids_RK).flat) & set(lost):
            return False
        rows_R = slice(None) if asked.rows_R is None else torch.from_numpy(asked.rows_R)
        x_RD, weights_RK = handle.x_TD[rows_R], handle.topk_weights_TK[rows_R]
        ids_RK = torch.from_numpy(asked.ids_RK)
        part = LinkHandle(handle.step, handle.layer, x_RD, ids_RK, weights_RK, table)
        self._dispatch(part)
        self._wait(part, started)
        if part.left_out:
            return False  # lost as well meanwhile, and gone on without: that is for the whole handle to say
        outputs_SD = torch.empty(ids_RK.numel(), self._spec.hidden_size, dtype=self._spec.row_dtype)
        for other, it in part.routes.items():
            outputs_SD[torch.from_numpy(it.places())] = part.sums[other].to(self._spec.row_dtype)
        handle.sums[shard] = outputs_SD[ids_RK.flatten() >= 0]
        return True
