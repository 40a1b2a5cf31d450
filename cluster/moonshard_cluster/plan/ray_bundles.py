"""What a layout's workers would ask a Ray cluster for: the plan of `moonshard up --ray`, before there is one. Pure."""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moonshard.config import CellConfig
from moonshard.errors import ConfigError
from moonshard_cluster.on_ray.placement import PlacedWorker, Resources, place
from moonshard_cluster.plan.layout import Layout

_NODES = re.compile(r"(?:(\d+)x)?([A-Za-z_]\w*=\d+(?:\.\d+)?(?:,[A-Za-z_]\w*=\d+(?:\.\d+)?)*)")
# The most that a configuration takes: the placement then gives every worker its even share.
_THREADS_MAX = 1024
# The device has no flag of its own.
_ON_GPUS = '--transport all_to_all, and device = "cuda" in --config'


@dataclasses.dataclass(frozen=True, slots=True)
class RayPlan:
    """workers: with their bundles, in Ray's order. per_node: the most that one node holds of them, spread evenly.
    flags: of `moonshard up` that lead to the same bundles."""

    workers: Sequence[PlacedWorker]
    num_nodes: int
    per_node: int
    flags: str


def read_nodes(texts: Sequence[str]) -> list[Resources]:
    """Resources of each node from texts such as `8xCPU=64,GPU=1`. Raises ConfigError naming the text."""
    nodes: list[Resources] = []
    for text in texts:
        found = _NODES.fullmatch(text)
        if found is None or found[1] == "0":
            raise ConfigError("--ray", f"must be nodes such as 8xCPU=64 or 2xCPU=32,GPU=1, got {text!r}")
        resources = {name: float(amount) for name, amount in (part.split("=") for part in found[2].split(","))}
        nodes += [resources] * int(found[1] or 1)
    return nodes


def ray_plan(layout: Layout, checkpoint: Path, nodes: Sequence[Resources]) -> RayPlan:
    """The bundles of a layout's workers, each with an even share of a node's CPUs as its threads.

    Raises ConfigError when the nodes offer too little, or no transport runs this layout.
    """
    settings = _settings(layout)
    shares = place(CellConfig.build({"checkpoint": checkpoint, **settings, **_threads(_THREADS_MAX)}), nodes)
    threads = max(1, math.floor(shares[0].bundle["CPU"]))
    workers = place(CellConfig.build({"checkpoint": checkpoint, **settings, **_threads(threads)}), nodes)
    num_nodes = sum(node.get("CPU", 0.0) > 0 for node in nodes)
    return RayPlan(workers, num_nodes, math.ceil(len(workers) / num_nodes), _flags(layout, settings, threads))


def _settings(layout: Layout) -> dict[str, Any]:
    counts = {"num_shards": layout.num_shards, "num_replicas": layout.num_copies, "num_attention": layout.num_attention}
    on_gpus = "gpu" in (layout.expert_machine.kind, layout.attention_machine.kind)
    return {**counts, "transport": "all_to_all", "device": "cuda"} if on_gpus else counts


def _threads(number: int) -> dict[str, Any]:
    return {"experts": {"num_threads": number}, "attention": {"num_threads": number}}


def _flags(layout: Layout, settings: dict[str, Any], threads: int) -> str:
    flags = [f"--shards {layout.num_shards}", f"--replicas {layout.num_copies}", f"--attention {layout.num_attention}"]
    flags += [f"--expert-threads {threads}", f"--attention-threads {threads}"]
    return " ".join([*flags, *([_ON_GPUS] if "device" in settings else [])])
