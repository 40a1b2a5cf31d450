"""Where copies of experts should be: pure functions from loads to placements, and what a change would gain and cost.

One layer at a time: a layer's load is a list of rows by logical expert. K2's routing has a single group, so the policy
is global (the third of DeepSeek's EPLB): copy the hottest, then pack copies into shards, longest first, then exchange
pairs while the fullest shard gets emptier. Every shard has the same number of slots; rows of an expert are taken to
spread evenly over its copies.
"""

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from moonshard.errors import ConfigError

Mode = Literal["rows", "decode"]
Weight = Callable[[int, int], float]
"""(expert, copies) -> what one of so many copies weighs."""

EXCHANGES_MAX = 200


@dataclass(frozen=True, slots=True)
class Rules:
    """slots_per_shard: copies a shard can hold in one layer. min_copies: of every expert, for availability.

    mode: "rows" evens out rows, as prefill needs; "decode" evens out the experts that a batch of batch_rows rows
    activates, each of which a shard must read once however few rows it has. top_k: experts of a row.
    """

    num_shards: int
    slots_per_shard: int
    min_copies: int = 1
    mode: Mode = "rows"
    batch_rows: int = 64
    top_k: int = 8

    def check(self, num_experts: int) -> None:
        """Raises ConfigError when the experts cannot be placed so."""
        if not 1 <= self.min_copies <= self.num_shards:
            raise ConfigError("min_copies", f"must be in 1..{self.num_shards} shards, got {self.min_copies}")
        needed, there = num_experts * self.min_copies, self.num_shards * self.slots_per_shard
        if needed > there:
            raise ConfigError("slots_per_shard", f"{needed} copies need more than {there} slots")


Layer = tuple[tuple[int, ...], ...]
"""By shard, the experts it holds, ascending; no expert twice in one shard."""


def contiguous(num_experts: int, num_shards: int) -> Layer:
    """How shards hold experts at the start: blocks of equal size."""
    each = num_experts // num_shards
    return tuple(tuple(range(shard * each, (shard + 1) * each)) for shard in range(num_shards))


def weigher(load: Sequence[int], rules: Rules) -> Weight:
    """What a copy weighs under the rules' mode."""
    if rules.mode == "rows":
        return lambda expert, copies: load[expert] / copies
    num_rows = max(1.0, sum(load) / rules.top_k)
    return lambda expert, copies: 1.0 - (1.0 - min(1.0, load[expert] / num_rows / copies)) ** rules.batch_rows


def count_copies(load: Sequence[int], rules: Rules) -> list[int]:
    """Copies by expert: min_copies each, and in "rows" mode the rest of the slots to the heaviest copies.

    Not in "decode" mode: a copy of an active expert is one more expert to read.
    """
    rules.check(len(load))
    copies = [rules.min_copies] * len(load)
    if rules.mode == "decode":
        return copies
    spare = rules.num_shards * rules.slots_per_shard - sum(copies)
    heap = [
        (-rows / rules.min_copies, expert) for expert, rows in enumerate(load) if rules.min_copies < rules.num_shards
    ]
    heapq.heapify(heap)
    while spare and heap and heap[0][0] < 0:
        _, expert = heapq.heappop(heap)
        copies[expert] += 1
        spare -= 1
        if copies[expert] < rules.num_shards:
            heapq.heappush(heap, (-load[expert] / copies[expert], expert))
    return copies


class _Packing:
    """Shards that are being filled."""

    def __init__(self, copies: Sequence[int], weight: Weight, rules: Rules) -> None:
        self.weight = [weight(expert, number) for expert, number in enumerate(copies)]
        self.slots = rules.slots_per_shard
        self.held: list[set[int]] = [set() for _ in range(rules.num_shards)]
        self.filled = [0.0] * rules.num_shards

    def put(self, shard: int, expert: int) -> None:
        self.held[shard].add(expert)
        self.filled[shard] += self.weight[expert]

    def take(self, shard: int, expert: int) -> None:
        self.held[shard].remove(expert)
        self.filled[shard] -= self.weight[expert]

    def add_copy(self, copies: list[int], weight: Weight) -> bool:
        """One more copy of the heaviest expert of the fullest shard, where it helps. False when it does not."""
        top = max(range(len(self.held)), key=lambda shard: self.filled[shard])
        expert = max(self.held[top], key=lambda expert: (self.weight[expert], -expert))
        able = [shard for shard in range(len(self.held)) if self.has_room(shard) and expert not in self.held[shard]]
        lighter = weight(expert, copies[expert] + 1)
        target = min(able, key=lambda shard: (self.filled[shard], shard), default=None)
        if target is None or self.filled[target] + lighter >= self.filled[top] or lighter >= self.weight[expert]:
            return False
        for shard in range(len(self.held)):
            if expert in self.held[shard]:
                self.filled[shard] -= self.weight[expert] - lighter
        copies[expert] += 1
        self.weight[expert] = lighter
        self.put(target, expert)
        return True

    def has_room(self, shard: int) -> bool:
        return len(self.held[shard]) < self.slots

    def place(self, expert: int) -> None:
        """On the emptiest shard with room; where only its holders have room, another copy makes way."""
        shards = range(len(self.held))
        able = [shard for shard in shards if self.has_room(shard) and expert not in self.held[shard]]
        if able:
            self.put(min(able, key=lambda shard: (self.filled[shard], shard)), expert)
            return
        free = next(shard for shard in shards if self.has_room(shard))
        full = next(shard for shard in shards if expert not in self.held[shard])
        moved = min(self.held[full] - self.held[free], key=lambda other: (self.weight[other], other))
        self.take(full, moved)
        self.put(free, moved)
        self.put(full, expert)

    def exchange(self) -> bool:
        """Swap two copies, or move one, so that the fullest shard gets emptier. False when none would help."""
        top = max(range(len(self.held)), key=lambda shard: self.filled[shard])
        best: tuple[float, int, int, int | None] | None = None
        for other in range(len(self.held)):
            gap = self.filled[top] - self.filled[other]
            if gap <= 0:
                continue
            for mine, theirs in self._pairs(top, other):
                shift = self.weight[mine] - (self.weight[theirs] if theirs is not None else 0.0)
                # The higher of the two afterwards is lowest where half the gap is shifted.
                left = max(self.filled[top] - shift, self.filled[other] + shift)
                if 1e-12 < shift < gap and (best is None or left < best[0]):
                    best = left, other, mine, theirs
        if best is None or best[0] >= self.filled[top] * (1 - 1e-9):
            return False
        _, other, mine, theirs = best
        self.take(top, mine)
        self.put(other, mine)
        if theirs is not None:
            self.take(other, theirs)
            self.put(top, theirs)
        return True

    def _pairs(self, top: int, other: int) -> Iterable[tuple[int, int | None]]:
        """Copies of `top` with, for each, the copy of `other` whose exchange shifts closest to half the gap."""
        half = (self.filled[top] - self.filled[other]) / 2
        theirs = sorted(self.held[other] - self.held[top], key=lambda expert: self.weight[expert])
        weights = [self.weight[expert] for expert in theirs]
        for mine in sorted(self.held[top] - self.held[other]):
            if self.has_room(other):
                yield mine, None
            at = _nearest(weights, self.weight[mine] - half)
            if at is not None:
                yield mine, theirs[at]


def _nearest(ascending: Sequence[float], wanted: float) -> int | None:
    """Index of the value closest to `wanted`."""
    at = bisect_left(ascending, wanted)
    near = [i for i in (at - 1, at) if 0 <= i < len(ascending)]
    return min(near, key=lambda i: abs(ascending[i] - wanted), default=None)


def plan_layer(load: Sequence[int], rules: Rules) -> Layer:
    """A placement of one layer for its load. Raises ConfigError when the rules do not fit."""
    copies = count_copies(load, rules)
    packing = _Packing(copies, weigher(load, rules), rules)
    items = [expert for expert, number in enumerate(copies) for _ in range(number)]
    for expert in sorted(items, key=lambda expert: (-packing.weight[expert], expert)):
        packing.place(expert)
    for _ in range(EXCHANGES_MAX):
        if not packing.exchange():
            break
    return tuple(tuple(sorted(held)) for held in packing.held)


def improve_layer(current: Layer, load: Sequence[int], rules: Rules, moves_max: int) -> Layer:
    """`current` with at most moves_max copies loaded: hot experts are copied into free slots, then pairs exchanged."""
    copies = copies_of(current, len(load))
    weight = weigher(load, rules)
    packing = _Packing(copies, weight, rules)
    for shard, held in enumerate(current):
        for expert in held:
            packing.put(shard, expert)
    while rules.mode == "rows" and moves_max > 0 and packing.add_copy(copies, weight):
        moves_max -= 1
    while moves_max > 1 and packing.exchange():
        moves_max -= 2
    return tuple(tuple(sorted(held)) for held in packing.held)


def copies_of(layer: Layer, num_experts: int) -> list[int]:
    """By expert."""
    copies = [0] * num_experts
    for held in layer:
        for expert in held:
            copies[expert] += 1
    return copies


def shard_weights(layer: Layer, weight: Weight) -> list[float]:
    """What each shard carries."""
    copies = copies_of(layer, 1 + max(max(held, default=0) for held in layer))
    return [sum(weight(expert, copies[expert]) for expert in held) for held in layer]


def balancedness(weights: Sequence[float]) -> float:
    """Mean by maximum, 1 is perfect; 1 where nothing is carried."""
    most = max(weights)
    return sum(weights) / len(weights) / most if most > 0 else 1.0


def relabelled(wanted: Layer, current: Layer) -> Layer:
    """`wanted` with its shards renumbered so that many experts stay where they are: the largest overlaps first."""
    pairs = ((len(set(a) & set(b)), i, j) for i, a in enumerate(wanted) for j, b in enumerate(current))
    found: dict[int, int] = {}
    taken: set[int] = set()
    for _, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if i not in taken and j not in found:
            found[j] = i
            taken.add(i)
    return tuple(wanted[found[j]] for j in range(len(current)))


@dataclass(frozen=True, slots=True)
class Move:
    """A copy that a shard must load; what it drops for it is not needed any more or is held elsewhere."""

    shard: int
    expert: int


def moves(current: Layer, wanted: Layer) -> list[Move]:
    """Copies to load, shard by shard."""
    return [
        Move(shard, expert)
        for shard, (old, new) in enumerate(zip(current, wanted, strict=True))
        for expert in sorted(set(new) - set(old))
    ]
