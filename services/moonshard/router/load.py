"""What every expert has served, from the shards' windows: totals, and the growth over any recent time.

Pure: times are given. Counts are flat lists, layer by layer, as they come. One writer; a reader in another thread sees
each shard at one moment, not all shards at the same.
"""

import math
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from moonshard.errors import ConfigError

SNAPSHOTS_MAX, SNAPSHOT_CELLS_MAX = 240, 1_500_000
"""Of one shard: a history's resolution is its length by this, or the windows' own where they are longer; fewer where a
shard counts so many experts (all of them, when they may move) that the snapshots would hold more cells than that."""


@dataclass(frozen=True, slots=True)
class ShardWindow:
    """What one shard served in span_s seconds. rows: [layers, experts]; experts: logical numbers."""

    span_s: float
    layers: tuple[int, ...]
    experts: tuple[int, ...]
    rows: Sequence[int]


@dataclass(frozen=True, slots=True)
class LayerLoad:
    """Of one shard: rows of its experts in each layer."""

    experts: tuple[int, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoadMatrix:
    """rows: [layers, num_experts]. shards: by rank. span_s: from the first window's start to the last one's end."""

    layers: tuple[int, ...]
    num_experts: int
    rows: list[int]
    shards: dict[int, LayerLoad]
    span_s: float

    def with_blocks(self, experts_of: Callable[[int], range]) -> "LoadMatrix":
        """With other experts of each rank; the rows stay."""
        shards = {rank: LayerLoad(tuple(experts_of(rank)), it.rows) for rank, it in self.shards.items()}
        return replace(self, shards=shards)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A shard's totals as of at_s."""

    at_s: float
    rows: "array[int]"


class _Shard:
    def __init__(self, window: ShardWindow, now_s: float, history_s: float) -> None:
        self.experts = window.experts
        self.start = self.latest = _Snapshot(now_s - window.span_s, array("Q", bytes(8 * len(window.rows))))
        self._history_s = history_s
        self._num_kept_max = max(8, min(SNAPSHOTS_MAX, SNAPSHOT_CELLS_MAX // max(1, len(window.rows))))
        self._kept = deque([self.start])

    def add(self, window: ShardWindow, now_s: float) -> None:
        # The last one before the resolution is used up is kept, so that what is dropped is near what is kept.
        if now_s - self._kept[-1].at_s >= self._history_s / self._num_kept_max and self.latest is not self._kept[-1]:
            self._kept.append(self.latest)
        self.latest = _Snapshot(now_s, array("Q", map(int.__add__, self.latest.rows, window.rows)))
        # One snapshot from before the history is its base.
        while len(self._kept) > 1 and self._kept[1].at_s <= now_s - self._history_s:
            self._kept.popleft()

    def growth(self, since_s: float) -> tuple[list[int], float]:
        """Rows served since, as [layers, experts], and the seconds in which they were."""
        latest = self.latest
        base = self.start if since_s < self.start.at_s else self._base(since_s)
        return list(map(int.__sub__, latest.rows, base.rows)), max(0.0, latest.at_s - base.at_s)

    def _base(self, since_s: float) -> _Snapshot:
        kept = [*self._kept, self.latest]
        return next((snapshot for snapshot in reversed(kept) if snapshot.at_s <= since_s), kept[0])


class LoadBook:
    """history_s: how far back `matrix` can look, except to the beginning."""

    def __init__(self, num_experts: int, history_s: float) -> None:
        self.layers: tuple[int, ...] = ()
        self.num_experts = num_experts
        self.history_s = history_s
        self._shards: dict[int, _Shard] = {}

    def add(self, rank: int, window: ShardWindow, now_s: float) -> None:
        """A shard that starts anew goes on where it was. Raises ConfigError when the window's shape is wrong."""
        self._check(rank, window)
        self.layers = window.layers
        if rank not in self._shards:
            self._shards[rank] = _Shard(window, now_s, self.history_s)
        self._shards[rank].add(window, now_s)

    def matrix(self, window_s: float, now_s: float) -> LoadMatrix:
        """Of the windows that ended in the last window_s seconds; 0: of all there were."""
        since_s = now_s - window_s if window_s else -math.inf
        rows = [0] * (len(self.layers) * self.num_experts)
        shards, longest_s = {}, 0.0
        for rank, shard in sorted(self._shards.items()):
            grown, span_s = shard.growth(since_s)
            longest_s = max(longest_s, span_s)
            self._spread(rows, shard.experts, grown)
            shards[rank] = LayerLoad(shard.experts, tuple(map(sum, _by_layer(grown, len(shard.experts)))))
        return LoadMatrix(self.layers, self.num_experts, rows, shards, longest_s)

    def balancedness(self, window_s: float, now_s: float) -> dict[int, float]:
        """Mean by maximum of the shards' rows in each layer, 1 is perfect; without layers that nobody needed."""
        shards = self.matrix(window_s, now_s).shards.values()
        by_layer = zip(*(shard.rows for shard in shards), strict=True)
        return {
            layer: sum(rows) / len(rows) / max(rows)
            for layer, rows in zip(self.layers, by_layer, strict=False)
            if any(rows)
        }

    def _spread(self, rows: list[int], experts: Sequence[int], grown: list[int]) -> None:
        for layer, layer_rows in enumerate(_by_layer(grown, len(experts))):
            for expert, value in zip(experts, layer_rows, strict=True):
                rows[layer * self.num_experts + expert] += value

    def _check(self, rank: int, window: ShardWindow) -> None:
        if self.layers and window.layers != self.layers:
            raise ConfigError("expert_load.layers", f"must be {self.layers}, got {window.layers} from shard {rank}")
        if len(window.rows) != len(window.layers) * len(window.experts):
            expected = len(window.layers) * len(window.experts)
            raise ConfigError("expert_load.rows", f"must be {expected}, got {len(window.rows)} from shard {rank}")
        if strangers := [expert for expert in window.experts if not 0 <= expert < self.num_experts]:
            raise ConfigError("expert_load.experts", f"must be below {self.num_experts}, got {strangers[0]}")
        if (known := self._shards.get(rank)) and known.experts != window.experts:
            raise ConfigError(
                "expert_load.experts", f"shard {rank} held {known.experts}, now tells of {window.experts}"
            )


def _by_layer(rows: Sequence[int], num_experts: int) -> Iterable[Sequence[int]]:
    return (rows[at : at + num_experts] for at in range(0, len(rows), num_experts))
