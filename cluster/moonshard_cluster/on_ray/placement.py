"""Which resources each worker asks Ray for, from the configuration and the nodes. Pure.

Every worker is a bundle of one placement group that Ray spreads over the nodes: expert shards first, because their
number is what a lost node is felt by.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moonshard.config import CellConfig
from moonshard.errors import ConfigError

Resources = Mapping[str, float]
# Ray counts resources in ten-thousandths.
_STEP = 100


@dataclass(frozen=True, slots=True)
class PlacedWorker:
    """One worker, and what Ray reserves for it. rank: within its role."""

    role: str
    rank: int
    bundle: Resources

    @property
    def name(self) -> str:
        return f"{self.role}-{self.rank}"


def place(config: CellConfig, nodes: Sequence[Resources]) -> list[PlacedWorker]:
    """Expert workers, then attention workers. nodes: total resources of each node that is alive.

    Raises ConfigError when the cluster has too few GPUs, or no CPU at all. A node without CPUs takes no worker.
    """
    nodes = [node for node in nodes if node.get("CPU", 0.0) > 0]
    if not nodes:
        raise ConfigError("--ray", "no node of the cluster offers a CPU; give Ray --num-cpus")
    num_experts = config.num_shards * config.num_replicas
    share = _cpu_limit(nodes, num_experts + config.num_attention)
    gpus = _gpus(config, nodes, num_experts + config.num_attention)
    experts = {"CPU": min(share, max(1, config.experts.num_threads)), **gpus}
    attention = {"CPU": min(share, max(1, config.attention.num_threads)), **gpus}
    workers = [PlacedWorker("expert", rank, experts) for rank in range(num_experts)]
    return workers + [PlacedWorker("attention", rank, attention) for rank in range(config.num_attention)]


def for_ray(config: CellConfig) -> CellConfig:
    """The same cell for workers that do not share a machine."""
    return config.model_copy(
        update={
            "links": "tcp",
            "network": config.network.model_copy(update={"bind_host": "0.0.0.0"}),
            "router": config.router.model_copy(update={"host": "0.0.0.0"}),
            "metrics": config.metrics.model_copy(update={"host": "0.0.0.0"}),
        }
    )


def _cpu_limit(nodes: Sequence[Resources], num_workers: int) -> float:
    """The most that every worker can have at once: attention and experts take turns, so cores may be shared."""
    per_node = math.ceil(num_workers / len(nodes))
    smallest = min(node["CPU"] for node in nodes)
    return max(1.0 / _STEP, math.floor(_STEP * smallest / per_node) / _STEP)


def _gpus(config: CellConfig, nodes: Sequence[Resources], num_workers: int) -> dict[str, float]:
    if config.device != "cuda":
        return {}
    available = sum(node.get("GPU", 0.0) for node in nodes)
    if available < num_workers:
        raise ConfigError("device", f"every worker needs a GPU: {num_workers} of them, the cluster has {available:g}")
    return {"GPU": 1.0}
