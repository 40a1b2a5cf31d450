"""The load of a cell's experts as numbers, from the router or from a recorded file.

Shapes: L MoE layers, E logical experts, S shards.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moonshard.errors import ConfigError
from moonshard.v1 import control_pb2 as pb

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """rows_LE: rows that each expert served in span_s seconds. rows_SL: by shard; holds: the shards' experts."""

    model_name: str
    taken_at_s: float
    span_s: float
    layers: tuple[int, ...]
    rows_LE: Counts
    ranks: tuple[int, ...]
    rows_SL: Counts
    holds: tuple[tuple[int, ...], ...]

    @property
    def total(self) -> int:
        return int(self.rows_LE.sum())

    def balancedness_L(self) -> NDArray[np.float64]:
        """Mean by maximum of the shards' rows, 1 where there are none."""
        most_L = self.rows_SL.max(axis=0, initial=0)
        return np.where(most_L > 0, self.rows_SL.mean(axis=0) / np.maximum(most_L, 1), 1.0)

    def hottest(self, count: int) -> list[tuple[int, int, int]]:
        """(layer, expert, rows), most rows first; of equal ones the lower layer and expert."""
        flat = self.rows_LE.reshape(-1)
        order = np.argsort(-flat, kind="stable")[:count].tolist()
        num_experts = self.rows_LE.shape[1]
        return [(self.layers[at // num_experts], at % num_experts, int(flat[at])) for at in order if flat[at]]

    def heat_LE(self) -> NDArray[np.float64]:
        """Rows by the mean of their layer: 1 is an expert with its fair share."""
        heat_LE: NDArray[np.float64] = self.rows_LE / np.maximum(self.rows_LE.mean(axis=1, keepdims=True), 1e-12)
        return heat_LE

    def of_layers(self, layers: tuple[int, ...]) -> "ExpertLoad":
        """Of these only. Raises ConfigError for one that there is no load of."""
        if strangers := set(layers) - set(self.layers):
            raise ConfigError("layers", f"there is no load of layer {min(strangers)}")
        at = [self.layers.index(layer) for layer in layers]
        return replace(self, layers=layers, rows_LE=self.rows_LE[at], rows_SL=self.rows_SL[:, at])

    def minus(self, earlier: "ExpertLoad") -> "ExpertLoad":
        """What was served between two readings of totals. Raises ConfigError when they are not of one cell."""
        if (earlier.layers, earlier.rows_LE.shape, earlier.holds) != (self.layers, self.rows_LE.shape, self.holds):
            raise ConfigError("load", "the file's first and last line tell of different layers, experts or shards")
        return ExpertLoad(
            self.model_name,
            self.taken_at_s,
            self.taken_at_s - earlier.taken_at_s,
            self.layers,
            self.rows_LE - earlier.rows_LE,
            self.ranks,
            self.rows_SL - earlier.rows_SL,
            self.holds,
        )


def from_response(found: pb.GetLoadResponse) -> ExpertLoad:
    rows_LE = np.array(found.rows, np.int64).reshape(len(found.layers), found.num_experts)
    rows_SL = np.array([shard.rows for shard in found.shards], np.int64).reshape(len(found.shards), len(found.layers))
    return ExpertLoad(
        found.model_name,
        found.taken_at_s,
        found.span_s,
        tuple(found.layers),
        rows_LE,
        tuple(shard.rank for shard in found.shards),
        rows_SL,
        tuple(tuple(shard.experts) for shard in found.shards),
    )


def to_line(load: ExpertLoad) -> str:
    """One line of JSON."""
    return json.dumps(
        {
            "model_name": load.model_name,
            "taken_at_s": load.taken_at_s,
            "span_s": load.span_s,
            "layers": load.layers,
            "rows": load.rows_LE.tolist(),
            "shards": [
                {"rank": rank, "experts": holds, "rows": rows.tolist()}
                for rank, holds, rows in zip(load.ranks, load.holds, load.rows_SL, strict=True)
            ],
        },
        separators=(",", ":"),
    )


def read_recording(path: Path) -> ExpertLoad:
    """What was served while the file was recorded: its last line without its first, or its only line.

    Raises ConfigError when it cannot be read.
    """
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
        readings = [_from_json(json.loads(line)) for line in lines[:1] + lines[1:][-1:]]
    except OSError as error:
        raise ConfigError("load", f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError("load", f"{path} is not a recording of expert load: {error!r}") from None
    if not readings:
        raise ConfigError("load", f"{path} is empty")
    return readings[-1].minus(readings[0]) if len(readings) > 1 else readings[0]


def _from_json(values: dict[str, Any]) -> ExpertLoad:
    rows_LE, layers, shards = np.array(values["rows"], np.int64), tuple(values["layers"]), values["shards"]
    if rows_LE.ndim != 2 or len(rows_LE) != len(layers):
        raise ValueError(f"rows must be [{len(layers)} layers, experts], got {list(rows_LE.shape)}")
    return ExpertLoad(
        str(values["model_name"]),
        float(values["taken_at_s"]),
        float(values["span_s"]),
        layers,
        rows_LE,
        tuple(int(shard["rank"]) for shard in shards),
        np.array([shard["rows"] for shard in shards], np.int64).reshape(len(shards), len(layers)),
        tuple(tuple(shard["experts"]) for shard in shards),
    )


def holders(load: ExpertLoad, expert: int) -> Iterable[int]:
    """Ranks of the shards that hold the expert."""
    return (rank for rank, experts in zip(load.ranks, load.holds, strict=True) if expert in experts)
