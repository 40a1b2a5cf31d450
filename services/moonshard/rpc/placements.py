"""Placements as messages and back. Pure."""

from collections.abc import Iterable, Mapping

from moonshard.placed import Placement
from moonshard.placement import Layer
from moonshard.v1 import control_pb2 as pb


def layer_to_proto(number: int, layer: Layer) -> pb.PlacedLayer:
    return pb.PlacedLayer(layer=number, shards=[pb.HeldExperts(experts=held) for held in layer])


def layers_from_proto(layers: Iterable[pb.PlacedLayer]) -> dict[int, Layer]:
    """By layer number; unchecked."""
    return {it.layer: tuple(tuple(shard.experts) for shard in it.shards) for it in layers}


def placement_to_proto(placement: Placement, layers: Iterable[int] | None = None) -> pb.Placement:
    """Whole, or only these layers."""
    numbers = placement.moe_layers if layers is None else tuple(layers)
    return pb.Placement(
        generation=placement.generation,
        layers=[layer_to_proto(number, placement.of_layer(number)) for number in numbers],
    )


def newer(known: Placement, told: pb.Placement) -> tuple[Placement, Mapping[int, Layer]] | None:
    """What `known` becomes with a message, and the layers that it tells of; None when it tells nothing new.

    Raises ConfigError for layers or experts that do not exist.
    """
    if told.generation <= known.generation:
        return None
    layers = layers_from_proto(told.layers)
    return known.changed(told.generation, layers), layers
