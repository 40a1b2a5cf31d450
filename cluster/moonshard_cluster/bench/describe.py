"""This machine as `moonshard plan` wants it described: every figure measured, in one run.

What a layer and a step cost beside their weights is measured on two demo checkpoints of next to no weights that differ
in depth only: the difference is the layers', the rest the engine's.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import psutil

from moonshard_cluster.plan.machines import Machine

if TYPE_CHECKING:
    from moonshard_cluster.bench.machine import KernelSpeed, Limits

SHALLOW, DEEP = 2, 6
FEW, MANY = 1, 32
# From how many rows on arithmetic counts and reading no more.
ROWS_READ, ROWS_COMPUTE = 1, 128


@dataclass(frozen=True, slots=True)
class Turns:
    """Seconds beside the weights' work: of a message to the shards or back, of a step, of a sequence in a step."""

    message: float
    step: float
    sequence: float

    @classmethod
    def of(cls, shallow: Mapping[int, float], deep: Mapping[int, float]) -> Self:
        """From seconds of a decode step by number of sequences, FEW and MANY, on SHALLOW and DEEP layers.

        The first layer is dense. Noise may make a difference negative: then it is nothing.
        """
        layer = max(0.0, (deep[FEW] - shallow[FEW]) / (DEEP - SHALLOW))
        step = max(0.0, shallow[FEW] - layer * (SHALLOW - 1))
        sequence = max(0.0, (shallow[MANY] - shallow[FEW]) / (MANY - FEW))
        return cls(layer / 2, max(0.0, step - sequence), sequence)


def step_seconds(tokens_per_second: Mapping[int, float]) -> dict[int, float]:
    """From decode rates by number of sequences."""
    return {batch: batch / rate for batch, rate in tokens_per_second.items()}


def describe(limits: "Limits", kernels: Sequence["KernelSpeed"], turns: Turns, network_gb_s: float) -> Machine:
    """kernels: of one expert, for ROWS_READ and ROWS_COMPUTE rows among others. network_gb_s: of its own sockets."""
    by_rows = {found.rows: found for found in kernels}
    return Machine(
        name="measured",
        kind="cpu",
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        read_gb_s=round(limits.read / 1e9, 2),
        bf16_tflops=round(limits.bf16 / 1e12, 4),
        expert_tops=round(limits.int8 / 1e12, 4),
        network_gb_s=network_gb_s,
        latency_us=round(max(0.1, turns.message * 1e6), 1),
        step_us=round(turns.step * 1e6, 1),
        sequence_us=round(turns.sequence * 1e6, 1),
        cores=os.cpu_count() or 1,
        read_share=min(1.0, round(by_rows[ROWS_READ].share_of_read, 3)),
        compute_share=min(1.0, round(by_rows[ROWS_COMPUTE].share_of_int8, 3)),
    )


def to_toml(machine: Machine) -> str:
    """For `moonshard plan --experts FILE`."""
    values = machine.model_dump(exclude={"name"})
    lines = (f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in values.items())
    return f"# measured by moonshard bench --describe on {os.cpu_count()} cores\n" + "\n".join(lines) + "\n"
