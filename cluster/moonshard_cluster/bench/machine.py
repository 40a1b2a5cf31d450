"""What the machine's memory and arithmetic could do at best, and what the kernels reach of it, in one run."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from moonshard.kernels import Int4Experts, Pool
from moonshard.kernels.limits import dot_peak, read_bandwidth

# Experts in a ring larger than any cache, so that each call reads memory.
RING_BYTES = 400 << 20
ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes per second read, and operations per second of dot products (multiply and add count two)."""

    read: float
    int8: float
    bf16: float


@dataclass(frozen=True, slots=True)
class KernelSpeed:
    """One expert on `rows` rows: weights read per second and arithmetic done, and their shares of the limits."""

    rows: int
    read: float
    operations: float
    share_of_read: float
    share_of_int8: float


def limits(pool: Pool) -> Limits:
    return Limits(read_bandwidth(pool), dot_peak(pool, "int8"), dot_peak(pool, "bf16"))


def expert_kernels(pool: Pool, found: Limits, width: int, hidden: int, rows: tuple[int, ...]) -> Iterator[KernelSpeed]:
    """INT4 experts of the given widths, INT8 activations; medians."""
    expert_bytes = 3 * width * hidden * 9 // 16
    num_experts = max(4, RING_BYTES // expert_bytes)
    stack = _random_experts(pool, num_experts, width, hidden)
    for num_rows in rows:
        used = num_experts if num_rows <= 8 else 4
        x_RD, ids_RK = torch.randn(num_rows, width), torch.arange(used).repeat(num_rows, 1)
        weights_RK = torch.full((num_rows, used), 0.1)
        seconds = _median_s(lambda: stack.forward(pool, x_RD, ids_RK, weights_RK)) / used  # noqa: B023
        read, operations = expert_bytes / seconds, 6 * width * hidden * num_rows / seconds
        yield KernelSpeed(num_rows, read, operations, read / found.read, operations / found.int8)


def _random_experts(pool: Pool, num_experts: int, width: int, hidden: int) -> Int4Experts:
    """Written once, or the system would map all of it to one page of zeros."""
    stack = Int4Experts(0, num_experts, width, hidden)
    for name, (outputs, inputs) in {"gate": (hidden, width), "up": (hidden, width), "down": (width, hidden)}.items():
        packed = torch.randint(-(2**31), 2**31, (outputs, inputs // 8), dtype=torch.int32)
        scale = torch.full((outputs, inputs // 32), 0.01, dtype=torch.bfloat16)
        for expert in range(num_experts):
            stack.load(pool, expert, name, packed, scale)
    return stack


def _median_s(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
