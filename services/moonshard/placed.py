"""Where every expert of a cell is: the committed placement, numbered by generation. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from moonshard.errors import ConfigError
from moonshard.placement import Layer, contiguous
from moonshard.topology import Coverage


@dataclass(frozen=True, eq=False)
class Placement:
    """layers: one for each of moe_layers, in order. Generation 0 is contiguous blocks, as shards load them."""

    generation: int
    num_experts: int
    moe_layers: tuple[int, ...]
    layers: tuple[Layer, ...]

    @classmethod
    def blocks(cls, num_experts: int, num_shards: int, moe_layers: Sequence[int]) -> "Placement":
        layer = contiguous(num_experts, num_shards)
        return cls(0, num_experts, tuple(moe_layers), (layer,) * len(moe_layers))

    @property
    def num_shards(self) -> int:
        return len(self.layers[0]) if self.layers else 0

    @property
    def is_contiguous(self) -> bool:
        return all(layer == contiguous(self.num_experts, self.num_shards) for layer in self.layers)

    @property
    def num_extra(self) -> int:
        """Copies beyond one of each expert, over all layers."""
        return sum(len(held) for layer in self.layers for held in layer) - self.num_experts * len(self.layers)

    def of_layer(self, layer: int) -> Layer:
        return self.layers[self.moe_layers.index(layer)]

    def changed(self, generation: int, layers: Mapping[int, Layer]) -> "Placement":
        """With other layers, by their numbers. Raises ConfigError where they are none, or an expert has no copy."""
        found = list(self.layers)
        for layer, held in layers.items():
            found[self._place(layer)] = check_layer(layer, held, self.num_experts, self.num_shards)
        return Placement(generation, self.num_experts, self.moe_layers, tuple(found))

    def _place(self, layer: int) -> int:
        if layer not in self.moe_layers:
            first, last = self.moe_layers[0], self.moe_layers[-1]
            raise ConfigError("placement.layer", f"must be an MoE layer in {first}..{last}, got {layer}")
        return self.moe_layers.index(layer)


def check_layer(number: int, layer: Sequence[Sequence[int]], num_experts: int, num_shards: int) -> Layer:
    """In its plain form. Raises ConfigError naming what is wrong with it."""
    if len(layer) != num_shards:
        raise ConfigError("placement", f"layer {number} must name {num_shards} shards, got {len(layer)}")
    for shard, held in enumerate(layer):
        if len(set(held)) != len(held):
            twice = next(expert for expert, count in Counter(held).items() if count > 1)
            raise ConfigError("placement", f"layer {number}: shard {shard} holds expert {twice} twice")
        if strangers := [expert for expert in held if not 0 <= expert < num_experts]:
            raise ConfigError("placement", f"layer {number}: experts are 0..{num_experts - 1}, got {strangers[0]}")
    if absent := set(range(num_experts)) - {expert for held in layer for expert in held}:
        raise ConfigError("placement", f"layer {number}: expert {min(absent)} has no copy")
    return tuple(tuple(sorted(held)) for held in layer)


def coverage_of(placement: Placement, live: tuple[int, ...]) -> Coverage:
    """live: copies of each shard that are ready. An expert counts as covered where it is in every layer.

    Copies are those of the (layer, expert) that has the fewest, and the most.
    """
    found = [_layer_copies(layer, placement.num_experts, live) for layer in placement.layers]
    absent = frozenset().union(*(it.absent for it in found))
    fewest, most = min((it.fewest for it in found), default=0), max((it.most for it in found), default=0)
    return Coverage(placement.num_experts, placement.num_experts - len(absent), fewest, most)


class _Copies(NamedTuple):
    absent: frozenset[int]
    fewest: int
    most: int


# One layer changes at a time, and readiness asks for coverage at every change.
@lru_cache(maxsize=512)
def _layer_copies(layer: Layer, num_experts: int, live: tuple[int, ...]) -> _Copies:
    copies = [0] * num_experts
    for held, number in zip(layer, live, strict=True):
        for expert in held:
            copies[expert] += number
    return _Copies(frozenset(expert for expert, it in enumerate(copies) if not it), min(copies), max(copies))
