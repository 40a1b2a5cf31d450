"""Now and then a row that one copy of a shard has answered also goes to another copy, and both answers must agree.

It finds processors that compute wrongly, which no checksum of weights does. Shapes: R rows of one shard, P rows of its
answer, D hidden size.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from moonshard.transport.contract import WireSpec
from moonshard.transport.links.handle import LinkHandle, ShardLink
from moonshard.transport.links.routing import ShardRows
from moonshard.transport.links.table import LinkTable

# Of the largest number of a row: copies may run on processors with other instructions, and send BF16.
TOLERANCE = 0.02


class Disagreement(NamedTuple):
    """Two copies of a shard gave different answers to the same row. experts: those that it asked for there, logical."""

    shard: int
    replicas: tuple[int, int]
    layer: int
    experts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Probe:
    """One row on its way to the second copy. told_PD: what the first one said."""

    handle: LinkHandle
    link: ShardLink
    first_replica: int
    told_PD: Tensor


@dataclass(slots=True)
class Recheck:
    """every: dispatches for each row that is asked again; 0 is never. alarm: called with each disagreement."""

    spec: WireSpec
    every: int = 0
    alarm: Callable[[Disagreement], None] = lambda _: None
    num_done: int = 0
    num_disagreements: int = 0
    _next: int = 0
    _probe: _Probe | None = None
    _random: random.Random = field(default_factory=random.Random)

    def is_due(self, num_dispatches: int, table: LinkTable) -> bool:
        return bool(self.every) and num_dispatches >= self._next and self._probe is None and table.has_spares

    def ask(
        self, handle: LinkHandle, num_dispatches: int, table: LinkTable, send: Callable[[LinkHandle, ShardLink], object]
    ) -> None:
        """Send one row of a handle whose sums are there to another copy of one of its shards."""
        self._next = num_dispatches + self.every - 1  # its own dispatch is among them
        shard = self._random.choice(list(handle.routes))
        carriers = tuple(handle.carriers.get(shard, ()))
        spare = table.spare_of(shard, carriers)
        if len(carriers) != 1 or spare is None or shard in handle.left_out:
            return
        place = self._random.randrange(len(handle.routes[shard].ids_RK))
        probe, told_PD = one_row(handle, shard, place, self.spec)
        self._probe = _Probe(probe, spare, carriers[0].replica, told_PD)
        send(probe, spare)

    def forget(self) -> None:
        """Whatever the second copy says will not matter: its experts may move."""
        if probe := self._probe:
            probe.handle.sums[probe.link.shard] = probe.told_PD
            self._probe = None

    def settle(self) -> None:
        """Compare, when the second answer is there."""
        probe = self._probe
        if probe is None:
            return
        shard = probe.link.shard
        if (found_PD := probe.handle.sums.get(shard)) is not None:
            self._probe = None
            self.num_done += 1
            if not agree(probe.told_PD, found_PD):
                self.num_disagreements += 1
                ids = probe.handle.routes[shard].ids_RK
                experts = tuple(sorted(ids[ids >= 0].tolist()))
                replicas = probe.first_replica, probe.link.replica
                self.alarm(Disagreement(shard, replicas, probe.handle.layer, experts))
        elif probe.link.error:
            self._probe = None


def one_row(handle: LinkHandle, shard: int, place: int, spec: WireSpec) -> tuple[LinkHandle, Tensor]:
    """A handle of the shard's row at `place` alone, and what the shard said of it."""
    route = handle.routes[shard]
    row = place if route.rows_R is None else int(route.rows_R[place])
    ids_1K = route.ids_RK[place : place + 1]
    one = slice(row, row + 1)
    tensors = handle.x_TD[one].clone(), handle.topk_ids_TK[one].clone(), handle.topk_weights_TK[one].clone()
    probe = LinkHandle(handle.step, handle.layer, *tensors, handle.table)
    probe.routes = {shard: ShardRows(shard, None, ids_1K, spec.num_sums(ids_1K))}
    start = place if spec.sums == "shard" else int((route.ids_RK[:place] >= 0).sum())
    return probe, handle.sums[shard][start : start + probe.num_sums_of(shard)].float().clone()


def agree(one_PD: Tensor, other_PD: Tensor) -> bool:
    """Whether both say the same, but for rounding. NaN agrees with nothing."""
    largest = max(one_PD.abs().max().item(), other_PD.float().abs().max().item())
    return bool((one_PD - other_PD.float()).abs().max().item() <= TOLERANCE * largest)
