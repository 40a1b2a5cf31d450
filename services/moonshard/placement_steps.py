"""From one placement of a layer to another, one copy at a time, while every expert stays served. Pure.

A shard has a limited number of slots, so a copy that is not wanted any more gives its slot up first; that is possible
once the expert has another copy. Where shards wait for each other's slots, a copy is parked at a third one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moonshard.errors import ConfigError
from moonshard.placement import Layer


@dataclass(frozen=True, slots=True)
class Step:
    """before: the layer while `shard` loads `expert` (None: it only drops); after: once it is served from there."""

    before: Layer
    after: Layer
    shard: int
    expert: int | None


def steps(current: Layer, wanted: Layer, num_slots: int) -> list[Step]:
    """In order; the first's `before` may differ from `current`, as every `before` may from the `after` before it.

    num_slots: of each shard. Raises ConfigError when the placements do not fit it, or when nothing can give way.
    """
    for name, layer in (("current", current), ("wanted", wanted)):
        if (most := max(map(len, layer))) > num_slots:
            raise ConfigError("placement", f"the {name} placement needs {most} slots of a shard, there are {num_slots}")
    if missing := set(_all(current)) - set(_all(wanted)):
        raise ConfigError("placement", f"expert {min(missing)} would have no copy")
    walk = _Walk(current, wanted, num_slots)
    # Parking costs a step or two for each copy that stands in the way.
    for _ in range(4 * num_slots * len(current) + 1):
        if not any(walk.missing(shard) for shard in range(len(current))):
            return [*walk.done, *walk.dropped()]
        if not (walk.load_wanted() or walk.park()):
            break
    raise ConfigError("placement", f"{num_slots} slots a shard leave no room to move in: no copy can give way")


class _Walk:
    def __init__(self, current: Layer, wanted: Layer, num_slots: int) -> None:
        self.held = [set(experts) for experts in current]
        self.goal = [set(experts) for experts in wanted]
        self.done: list[Step] = []
        self._num_slots = num_slots
        self._copies: dict[int, int] = {}
        for expert in _all(current):
            self._copies[expert] = self._copies.get(expert, 0) + 1

    def missing(self, shard: int) -> set[int]:
        return self.goal[shard] - self.held[shard]

    def load_wanted(self) -> bool:
        """A wanted copy, where there is room or a copy that is not wanted can go. False when there is none."""
        for shard in range(len(self.held)):
            if not self.missing(shard):
                continue
            victims = self._spare(shard, self.held[shard] - self.goal[shard])
            if self._has_room(shard) or victims:
                self._load(shard, min(self.missing(shard)), None if self._has_room(shard) else victims[0])
                return True
        return False

    def park(self) -> bool:
        """Every shard that misses something is full of what has no other copy: one of these gets one elsewhere."""
        for shard in range(len(self.held)):
            if not self.missing(shard):
                continue
            for other in range(len(self.held)):
                movable = self.held[shard] - self.goal[shard] - self.held[other]
                victims = self._spare(other, self.held[other])
                if other != shard and movable and (self._has_room(other) or victims):
                    # Rather one that is wanted there anyway.
                    expert = min(movable, key=lambda it: (it not in self.goal[other], it))
                    self._load(other, expert, None if self._has_room(other) else victims[0])
                    self._load(shard, min(self.missing(shard)), expert)
                    return True
        return False

    def dropped(self) -> Iterator[Step]:
        """What is left over goes, all at once."""
        before = self._layer()
        for held, goal in zip(self.held, self.goal, strict=True):
            held &= goal
        if (after := self._layer()) != before:
            yield Step(after, after, -1, None)

    def _load(self, shard: int, expert: int, victim: int | None) -> None:
        if victim is not None:
            self.held[shard].remove(victim)
            self._copies[victim] -= 1
        before = self._layer()
        self.held[shard].add(expert)
        self._copies[expert] += 1
        self.done.append(Step(before, self._layer(), shard, expert))

    def _spare(self, shard: int, among: set[int]) -> list[int]:
        """Experts with another copy, those not wanted here first."""
        found = [expert for expert in among if self._copies[expert] > 1]
        return sorted(found, key=lambda expert: (expert in self.goal[shard], expert))

    def _has_room(self, shard: int) -> bool:
        return len(self.held[shard]) < self._num_slots

    def _layer(self) -> Layer:
        return tuple(tuple(sorted(experts)) for experts in self.held)


def _all(layer: Layer) -> Sequence[int]:
    return [expert for experts in layer for expert in experts]
