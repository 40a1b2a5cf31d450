"""How fast a layout decodes and prefills at best: time of one step as a sum of named terms.

A layer's phases follow each other: attention, rows on their way, experts, sums on their way. Within a phase reading
and arithmetic overlap, so the longer one counts. All experts are equally likely, which still leaves one shard with more
of them than another; what skew costs on top is the balancer's.
"""

from dataclasses import dataclass, replace

from moonshard_cluster.plan.costs import Costs
from moonshard_cluster.plan.layout import Layout
from moonshard_cluster.plan.machines import Machine


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds of one step. attention_read: weights; kv_read: cached latents. engine: scheduling, sampling and sending,
    before and after the layers. uneven: waiting for the shard (on one machine: the core) that has more of a layer's
    experts than its share. shard_busy: how long a shard works in the time of one step of every attention worker,
    which bounds the step when there are many of them."""

    attention_read: float
    kv_read: float
    attention_compute: float
    expert_read: float
    expert_compute: float
    network: float
    latency: float
    engine: float
    uneven: float
    shard_busy: float

    @property
    def attention(self) -> float:
        return max(self.attention_read + self.kv_read, self.attention_compute)

    @property
    def experts(self) -> float:
        return max(self.expert_read, self.expert_compute)

    @property
    def path(self) -> float:
        """One worker's step, were the shards its own."""
        return self.attention + self.experts + self.uneven + self.network + self.latency + self.engine

    @property
    def step(self) -> float:
        return max(self.path, self.shard_busy)


@dataclass(frozen=True, slots=True)
class Work:
    """Of one attention worker in one step. context: cached tokens that a row sees. Rows of one sequence read its cache
    once."""

    rows: float
    context: float
    sequences: float


def decode(costs: Costs, layout: Layout, num_sequences: int, context: int) -> Terms:
    """One token for each of `num_sequences`, shared evenly by the attention workers."""
    rows = num_sequences / layout.num_attention
    return _separated(costs, layout, Work(rows, context, rows))


def prefill(costs: Costs, layout: Layout, chunk: int, prompt: int) -> Terms:
    """A chunk of a prompt on each attention worker; its tokens see half of the prompt on average."""
    return _separated(costs, layout, Work(chunk, prompt / 2, 1))


def wide_ep_decode(costs: Costs, machine: Machine, num_machines: int, num_sequences: int, context: int) -> Terms:
    """Plain wide expert parallelism: every machine runs attention for its sequences and holds its part of the experts.

    All ranks step together, so their rows merge: the experts are read once for all sequences.
    """
    rows = num_sequences / num_machines
    read, compute = _experts(costs, machine, num_sequences, num_machines)
    per_row = _machines_per_row(costs, num_machines)
    seconds = 2 * rows * per_row * costs.row_bytes * costs.num_moe_layers / (machine.network_gb_s * 1e9)
    latency = 2 * costs.num_moe_layers * machine.latency_us * 1e-6
    uneven = max(read, compute) * costs.unevenness(num_sequences, num_machines)
    return _terms(costs, machine, 1, Work(rows, context, rows), read, compute, uneven, seconds, latency)


def fits_wide_ep(costs: Costs, machine: Machine, num_machines: int) -> bool:
    """Whether attention weights on every machine leave room for its part of the experts."""
    return costs.attention_bytes + costs.all_experts_bytes / num_machines <= machine.usable_bytes


def _separated(costs: Costs, layout: Layout, work: Work) -> Terms:
    expert, attention = layout.expert_machine, layout.attention_machine
    workers_on_attention = layout.num_attention if layout.shared else 1
    parts = 1 if layout.shared else layout.num_shards
    read, compute = _experts(costs, expert, work.rows, parts)
    per_shard = 1 if layout.shared else layout.num_shards
    leaving = work.rows * costs.shards_per_row(layout.num_shards)
    busiest = max(leaving, leaving * layout.num_attention / (per_shard * layout.num_copies))
    rate = min(expert.network_gb_s, attention.network_gb_s) * 1e9
    network = 2 * busiest * costs.row_bytes * costs.num_moe_layers / rate
    latency = 2 * costs.num_moe_layers * max(expert.latency_us, attention.latency_us) * 1e-6
    uneven = max(read, compute) * costs.unevenness(work.rows, expert.cores if layout.shared else layout.num_shards)
    terms = _terms(costs, attention, workers_on_attention, work, read, compute, uneven, network, latency)
    return replace(terms, shard_busy=max(read, compute) * layout.num_attention / layout.num_copies)


def _terms(
    costs: Costs,
    machine: Machine,
    workers: int,
    work: Work,
    expert_read: float,
    expert_compute: float,
    uneven: float,
    network: float,
    latency: float,
) -> Terms:
    ops = work.rows * (costs.attention_ops + costs.scores_ops * work.context)
    return Terms(
        attention_read=workers * costs.attention_read / machine.read,
        kv_read=workers * work.sequences * work.context * costs.kv_bytes / machine.read,
        attention_compute=workers * ops / machine.bf16,
        expert_read=expert_read,
        expert_compute=expert_compute,
        network=network,
        latency=latency,
        engine=(machine.step_us + work.sequences * machine.sequence_us) * 1e-6,
        uneven=uneven,
        shard_busy=0.0,
    )


def _experts(costs: Costs, machine: Machine, rows: float, parts: int) -> tuple[float, float]:
    """(reading, arithmetic) seconds over all layers, on each of `parts` machines that share the experts."""
    active = costs.active_experts(rows) / parts
    read = active * costs.expert_bytes * costs.num_moe_layers / machine.read
    ops = rows * costs.top_k * costs.expert_ops * costs.num_moe_layers / parts
    return read, ops / machine.expert


def _machines_per_row(costs: Costs, num_machines: int) -> float:
    """Of another machine than the row's own. Experts are spread evenly, whether or not the number divides them."""
    others = num_machines - 1
    return others * (1 - (1 - 1 / num_machines) ** costs.top_k)
