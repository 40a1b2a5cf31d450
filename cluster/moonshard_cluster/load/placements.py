"""Where a cell's experts are, from the router, and placements in files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moonshard.errors import ConfigError
from moonshard.placement import Layer
from moonshard.rpc.placements import layers_from_proto
from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.load.matrix import ExpertLoad


@dataclass(frozen=True, slots=True)
class CellPlacement:
    """layers: by number. num_slots: copies that a shard can hold in one layer. pins: by layer and expert, the shards.

    load_s: what loading a copy took on average, 0 before any was. is_live: of a running cell.
    """

    generation: int
    layers: Mapping[int, Layer]
    num_slots: int
    pins: Mapping[int, Mapping[int, tuple[int, ...]]]
    load_s: float
    is_live: bool = True

    @property
    def num_shards(self) -> int:
        return max((len(layer) for layer in self.layers.values()), default=1)

    @property
    def num_own(self) -> int:
        """Experts of a shard at the start."""
        experts = {expert for layer in self.layers.values() for held in layer for expert in held}
        return -(-len(experts) // self.num_shards)


def from_cell(found: pb.GetPlacementResponse) -> CellPlacement:
    pins: dict[int, dict[int, tuple[int, ...]]] = {}
    for pin in found.pins:
        pins.setdefault(pin.layer, {})[pin.expert] = tuple(pin.shards)
    return CellPlacement(found.generation, layers_from_proto(found.layers), found.slots_per_shard, pins, found.load_s)


def from_recording(load: ExpertLoad) -> CellPlacement:
    """Blocks, as the recorded shards started with."""
    layer = tuple(tuple(sorted(experts)) for experts in load.holds)
    each = max(map(len, layer), default=0)
    return CellPlacement(0, dict.fromkeys(load.layers, layer), each, {}, 0.0, is_live=False)


def write_layers(path: Path, layers: Mapping[int, Layer], generation: int) -> None:
    """A file for `read_layers`. Raises ConfigError when it cannot be written."""
    try:
        path.write_text(json.dumps({"generation": generation, "layers": layers}) + "\n")
    except OSError as error:
        raise ConfigError("save", f"cannot write {path}: {error.strerror}") from None


def read_layers(path: Path) -> tuple[dict[int, Layer], int]:
    """Layers by number, each with the experts of every shard, and the generation they were planned for, 0 for any.

    Raises ConfigError when the file is none of these.
    """
    try:
        values = json.loads(path.read_text())
        layers = {int(number): tuple(tuple(map(int, held)) for held in it) for number, it in values["layers"].items()}
        return layers, int(values.get("generation", 0))
    except OSError as error:
        raise ConfigError("file", f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            "file", f"{path} is not a placement of `moonshard placement plan --save`: {error!r}"
        ) from None
