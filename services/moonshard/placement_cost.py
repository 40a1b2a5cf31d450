"""What a placement costs per second of load, and what changing to it costs: a change must pay for itself. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from moonshard.placement import (
    Layer,
    Rules,
    balancedness,
    improve_layer,
    moves,
    plan_layer,
    relabelled,
    shard_weights,
    weigher,
)
from moonshard.placement_pins import Pins, pinned


@dataclass(frozen=True, slots=True)
class Costs:
    """row_s: a shard's time for one row of one expert. expert_s: for reading one active expert's weights.

    move_s: a shard's time for loading one copy, in which it serves nobody. horizon_s: for how long the load is taken to
    stay as it is.
    """

    row_s: float
    expert_s: float
    move_s: float
    horizon_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Change:
    """One layer's, before and after. *_s: seconds of waiting for the busiest shard, per second of load."""

    wanted: Layer
    num_moves: int
    balance_before: float
    balance_after: float
    before_s: float
    after_s: float
    cost_s: float
    horizon_s: float

    @property
    def gain_s(self) -> float:
        """Over the horizon."""
        return (self.before_s - self.after_s) * self.horizon_s

    @property
    def pays(self) -> bool:
        return self.gain_s > self.cost_s


def busiest_s(layer: Layer, load: Sequence[int], span_s: float, rules: Rules, costs: Costs) -> float:
    """Seconds that the layer's busiest shard computes, per second of load; `load` was served in span_s seconds."""
    rows_of = weigher(load, Rules(rules.num_shards, rules.slots_per_shard))
    active_of = weigher(
        load, Rules(rules.num_shards, rules.slots_per_shard, 1, "decode", rules.batch_rows, rules.top_k)
    )
    num_batches = sum(load) / rules.top_k / rules.batch_rows
    rows, active = shard_weights(layer, rows_of), shard_weights(layer, active_of)
    most_s = max(r * costs.row_s + a * num_batches * costs.expert_s for r, a in zip(rows, active, strict=True))
    return most_s / max(span_s, 1e-9)


def propose(
    current: Layer, load: Sequence[int], span_s: float, rules: Rules, costs: Costs, pins: Pins | None = None
) -> Change:
    """Of a few changed placements, from a handful of moves to a new one, the one that gains most after its cost."""
    num_experts = len(load)
    tries = [improve_layer(current, load, rules, moves_max) for moves_max in (1, 2, 4, 8, 16, 32, num_experts)]
    tries.append(relabelled(plan_layer(load, rules), current))
    tries = [pinned(wanted, pins, rules.slots_per_shard) for wanted in tries] if pins else tries
    changes = [change(current, wanted, load, span_s, rules, costs) for wanted in tries]
    return max(changes, key=lambda it: it.gain_s - it.cost_s)


def change(current: Layer, wanted: Layer, load: Sequence[int], span_s: float, rules: Rules, costs: Costs) -> Change:
    """What another placement of a layer would gain and cost."""
    weight, loaded = weigher(load, rules), moves(current, wanted)
    # Shards load beside each other; the one with most to load is waited for.
    longest = max((sum(move.shard == shard for move in loaded) for shard in range(rules.num_shards)), default=0)
    return Change(
        wanted,
        len(loaded),
        balancedness(shard_weights(current, weight)),
        balancedness(shard_weights(wanted, weight)),
        busiest_s(current, load, span_s, rules, costs),
        busiest_s(wanted, load, span_s, rules, costs),
        longest * costs.move_s,
        costs.horizon_s,
    )
