"""Who holds what: expert shards, attention workers, ranks and coverage, as frozen data from pure functions."""

from collections.abc import Iterable
from dataclasses import dataclass

from moonshard.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many live copies the experts have. Counts of experts, then of copies."""

    num_experts: int
    num_covered: int
    min_copies: int
    max_copies: int

    @property
    def complete(self) -> bool:
        return self.num_covered == self.num_experts


@dataclass(frozen=True, slots=True)
class Topology:
    """The shape of one cell. Shard i holds the i-th contiguous block of logical experts in every MoE layer.

    Each shard exists num_replicas times, as expert workers of their own: ranks first count through the shards, then
    through the replicas.
    """

    num_experts: int
    num_shards: int
    num_attention: int
    num_replicas: int = 1

    def __post_init__(self) -> None:
        for name in ("num_experts", "num_shards", "num_attention", "num_replicas"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(name, f"must be at least 1, got {value}")
        if self.num_experts % self.num_shards:
            raise ConfigError(
                "num_shards", f"must divide the model's {self.num_experts} experts, got {self.num_shards}"
            )

    @property
    def experts_per_shard(self) -> int:
        return self.num_experts // self.num_shards

    @property
    def num_expert_workers(self) -> int:
        return self.num_shards * self.num_replicas

    def shard_of(self, rank: int) -> int:
        """The shard that an expert worker serves."""
        return rank % self.num_shards

    def replica_of(self, rank: int) -> int:
        """Which copy of its shard an expert worker is, from 0."""
        return rank // self.num_shards

    @property
    def world_size(self) -> int:
        """Ranks of the collective group: expert shards first, then attention workers."""
        return self.num_shards + self.num_attention

    def experts_of(self, shard: int) -> range:
        """Logical experts of a shard."""
        if not 0 <= shard < self.num_shards:
            raise ConfigError("shard", f"must be in 0..{self.num_shards - 1}, got {shard}")
        return range(shard * self.experts_per_shard, (shard + 1) * self.experts_per_shard)

    def attention_rank(self, attention: int) -> int:
        """Rank of an attention worker in the collective group; a shard's rank is its number."""
        return self.num_shards + attention


def coverage(num_experts: int, live: Iterable[range]) -> Coverage:
    """Coverage of `num_experts` logical experts by the expert ranges of the live shards."""
    copies = [0] * num_experts
    for experts in live:
        for expert in experts:
            copies[expert] += 1
    return Coverage(num_experts, sum(c > 0 for c in copies), min(copies), max(copies))
