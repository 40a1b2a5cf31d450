"""The placer's nouns as messages. Pure."""

from moonshard.router.placer import Placer, Progress
from moonshard.rpc.placements import placement_to_proto
from moonshard.v1 import control_pb2 as pb


def placement_response(placer: Placer) -> pb.GetPlacementResponse:
    placement = placer.placement
    return pb.GetPlacementResponse(
        generation=placement.generation,
        layers=placement_to_proto(placement).layers,
        num_experts=placement.num_experts,
        slots_per_shard=placer.limits.slots_per_shard,
        pins=[pb.Pin(layer=layer, expert=expert, shards=it) for (layer, expert), it in sorted(placer.pins.items())],
        load_s=placer.load_s,
    )


def progress_message(placer: Placer, progress: Progress, seconds: float) -> pb.PlacementProgress:
    return pb.PlacementProgress(
        generation=placer.placement.generation,
        layer=progress.layer,
        num_layers_done=progress.num_layers_done,
        num_layers=progress.num_layers,
        num_loaded=progress.num_loaded,
        seconds=seconds,
    )
