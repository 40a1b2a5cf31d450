"""Copies that have to stay at certain shards, worked into a planned layer. Pure."""

from collections import Counter
from collections.abc import Mapping

from moonshard.errors import ConfigError
from moonshard.placement import Layer

Pins = Mapping[int, tuple[int, ...]]
"""By expert the shards that must hold it."""


def pinned(layer: Layer, pins: Pins, num_slots: int) -> Layer:
    """The layer with the pinned copies, and as few changes besides as there can be.

    Raises ConfigError where a shard has more pins than slots, or nothing on it can make way.
    """
    held = [set(experts) for experts in layer]
    fixed = [{expert for expert, shards in pins.items() if shard in shards} for shard in range(len(layer))]
    for shard, experts in enumerate(fixed):
        if len(experts) > num_slots:
            raise ConfigError(
                "pin.shards", f"shard {shard} has {num_slots} slots, {len(experts)} experts are pinned to it"
            )
        for expert in sorted(experts - held[shard]):
            if len(held[shard]) >= num_slots:
                _make_way(held, fixed, shard, expert, num_slots)
            held[shard].add(expert)
    return tuple(tuple(sorted(experts)) for experts in held)


def _make_way(held: list[set[int]], fixed: list[set[int]], shard: int, expert: int, num_slots: int) -> None:
    """One of the shard's experts goes: a copy that is not the only one, or it moves to where `expert` was, to a free
    slot, or to where something else has a copy too many."""
    copies = Counter(one for experts in held for one in experts)
    movable = sorted(held[shard] - fixed[shard])
    if spare := [one for one in movable if copies[one] > 1]:
        held[shard].remove(spare[0])
        return
    for other in sorted(range(len(held)), key=lambda it: expert not in held[it]) if movable else ():
        given = [one for one in held[other] - fixed[other] if one == expert or copies[one] > 1]
        if other != shard and (given or len(held[other]) < num_slots):
            if len(held[other]) >= num_slots:
                held[other].remove(expert if expert in given else min(given))
            held[other].add(movable[0])
            held[shard].remove(movable[0])
            return
    raise ConfigError("pin.shards", f"nothing on shard {shard} can make way for expert {expert}")
