"""How many workers of each kind hold a model on given machines, and what each then holds."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from moonshard.errors import ConfigError
from moonshard_cluster.plan.costs import Costs
from moonshard_cluster.plan.machines import Machine


@dataclass(frozen=True, slots=True)
class Demand:
    """What is to be served at once: sequences, and tokens of context in each."""

    num_sequences: int = 64
    context: int = 8192


@dataclass(frozen=True, slots=True)
class Layout:
    """Workers and the machines under them. Every worker has a machine of its own, unless the two kinds share one
    machine (`shared`), as on a laptop."""

    num_shards: int
    num_copies: int
    num_attention: int
    expert_machine: Machine
    attention_machine: Machine
    shared: bool = False

    @property
    def num_machines(self) -> int:
        return 1 if self.shared else self.num_shards * self.num_copies + self.num_attention

    def shard_bytes(self, costs: Costs) -> int:
        return costs.all_experts_bytes // self.num_shards

    def redundant_slots(self, costs: Costs) -> int:
        """How many more experts (all layers of each) one shard's memory takes."""
        room = self.expert_machine.usable_bytes - self.shard_bytes(costs)
        return max(0, int(room // (costs.expert_bytes * costs.num_moe_layers)))

    def kv_bytes_free(self, costs: Costs) -> float:
        """For the KV cache of one attention worker."""
        experts = self.num_shards * self.num_copies * self.shard_bytes(costs) if self.shared else 0
        held = self.num_attention * costs.attention_bytes if self.shared else costs.attention_bytes
        room = self.attention_machine.usable_bytes - held - experts
        return max(0.0, room / (self.num_attention if self.shared else 1))

    def sequences(self, costs: Costs, context: int) -> int:
        """Of this context that all attention workers hold at once."""
        return self.num_attention * int(self.kv_bytes_free(costs) // (costs.kv_bytes * context))


def smallest(costs: Costs, experts: Machine, attention: Machine, demand: Demand) -> Layout:
    """The fewest machines that hold the weights and one sequence of the demand's context."""
    return Layout(
        _fewest_shards(costs, experts), 1, _attention_workers(costs, attention, demand.context), experts, attention
    )


def recommended(
    costs: Costs, experts: Machine, attention: Machine, demand: Demand, rate: Callable[[Layout], float]
) -> Layout:
    """Two of everything, KV cache for the whole demand, and of the attention workers as many as pay for themselves.

    Any one worker may die and nobody waits for its return. Eight shards at least, where the number of experts allows
    it: fewer rows per shard, smaller losses. rate: tokens a second of a layout, which is weighed against its machines.
    """
    fewest = _fewest_shards(costs, experts)
    shards = next((s for s in _divisors(costs.num_experts) if s >= max(8, fewest)), fewest)
    at_least = max(2, _attention_workers(costs, attention, demand.num_sequences * demand.context))
    candidates = [Layout(shards, 2, at_least + more, experts, attention) for more in range(4 * shards)]
    return max(candidates, key=lambda layout: rate(layout) / layout.num_machines)


def on_one_machine(costs: Costs, machine: Machine, num_shards: int = 8, num_attention: int = 1) -> Layout:
    """The whole cell on one machine, as `moonshard up` starts it. Raises ConfigError when it does not fit."""
    needed = costs.all_experts_bytes + num_attention * costs.attention_bytes
    if needed > machine.usable_bytes:
        raise _too_small(machine, "the whole cell", needed)
    return Layout(num_shards, 1, num_attention, machine, machine, shared=True)


def _fewest_shards(costs: Costs, machine: Machine) -> int:
    for shards in _divisors(costs.num_experts):
        if costs.all_experts_bytes / shards <= machine.usable_bytes:
            return shards
    raise _too_small(machine, "one expert of every layer", costs.expert_bytes * costs.num_moe_layers)


def _attention_workers(costs: Costs, machine: Machine, num_tokens: int) -> int:
    room = machine.usable_bytes - costs.attention_bytes
    if room < costs.kv_bytes:
        raise _too_small(machine, "an attention worker's weights", costs.attention_bytes)
    return ceil(num_tokens * costs.kv_bytes / room)


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def _too_small(machine: Machine, what: str, needed: float) -> ConfigError:
    usable = machine.usable_bytes / 1e9
    return ConfigError("machine", f"{machine.name} has {usable:.1f} GB for weights, {what} takes {needed / 1e9:.1f} GB")
