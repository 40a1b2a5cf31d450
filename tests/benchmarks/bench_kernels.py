"""Time the CPU kernels beside the machine's own limits, measured in the same run.

    python -m tests.benchmarks.bench_kernels [--threads 1 2] [--seconds 0.3] [--json FILE] [--torch]

Experts of K2.5's size (7168 x 2048), BF16 matrices of its attention, shared expert and head. Weights come from a ring
far larger than any cache, so that each call reads memory; the share of the limit counts weights only.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch

from moonshard.kernels import Bf16Linear, Int4Experts, Pool, Precision
from moonshard.kernels.limits import dot_peak, read_bandwidth
from tests.benchmarks.kernel_table import figures, median_s, new_parser, print_rows

WIDTH, HIDDEN, RING = 7168, 2048, 24
EXPERT_ROWS = (1, 2, 4, 8, 16, 32, 128)
LINEAR_ROWS = (1, 2, 4, 8, 16, 32, 128, 512)
LINEAR_SHAPES = {"o_proj": (7168, 8192), "q_b_proj": (12288, 1536), "shared gate": (2048, 7168), "S 1024": (1024, 1024)}
RING_BYTES = 1 << 30
PRECISIONS: tuple[Precision, ...] = ("int8", "int16")

Matrix = Callable[[torch.Tensor], torch.Tensor]


def make_experts(pool: Pool) -> Int4Experts:
    """RING experts of one random matrix each; the values do not matter to the clock."""
    stack = Int4Experts(0, RING, WIDTH, HIDDEN)
    for name, (outputs, inputs) in {"gate": (HIDDEN, WIDTH), "up": (HIDDEN, WIDTH), "down": (WIDTH, HIDDEN)}.items():
        packed = torch.randint(-(2**31), 2**31, (outputs, inputs // 8), dtype=torch.int32)
        scale = torch.full((outputs, inputs // 32), 0.01, dtype=torch.bfloat16)
        for expert in range(RING):
            stack.load(pool, expert, name, packed, scale)
    return stack


def bench_experts(
    pool: Pool, stack: Int4Experts, precision: Precision, limits: dict[str, float], budget_s: float
) -> Iterator[dict[str, object]]:
    """One call works on every expert of the ring with `rows` rows each; figures are per expert."""
    for rows in EXPERT_ROWS:
        used = RING if rows <= 8 else 6
        ids = torch.arange(used).repeat(rows, 1)
        call = partial(
            stack.forward, pool, torch.randn(rows, WIDTH), ids, torch.full((rows, used), 0.1), precision=precision
        )
        seconds = median_s(call, budget_s) / used
        found = figures(seconds, stack.resident_bytes // RING, 6 * WIDTH * HIDDEN * rows, limits, "int8")
        yield {"kernel": f"int4 expert, {precision}", "threads": pool.num_threads, "rows": rows, **found}


def bench_linear(
    name: str, ring: list[Matrix], size: int, threads: int, limits: dict[str, float], budget_s: float
) -> Iterator[dict[str, object]]:
    """BF16 activations over a ring of matrices of `size` weights, each a function of x."""
    inputs = int(name.rpartition("x")[2])
    for rows in LINEAR_ROWS:
        x = torch.randn(rows, inputs).bfloat16()
        following = itertools.cycle(ring)
        several = min(len(ring), max(1, 10_000_000 // size))

        def calls(x: torch.Tensor = x, following: Iterator[Matrix] = following, several: int = several) -> None:
            for _ in range(several):
                next(following)(x)

        found = figures(median_s(calls, budget_s) / several, 2 * size, 2 * size * rows, limits, "bf16")
        yield {"kernel": name, "threads": threads, "rows": rows, **found}


def bench_linears(
    pool: Pool, limits: dict[str, float], budget_s: float, with_torch: bool
) -> Iterator[dict[str, object]]:
    for shape, (outputs, inputs) in LINEAR_SHAPES.items():
        size, name = outputs * inputs, f"{shape} {outputs}x{inputs}"
        weights = torch.full((RING_BYTES // (2 * size), outputs, inputs), 0.5, dtype=torch.bfloat16)
        if with_torch:
            theirs: list[Matrix] = [partial(torch.nn.functional.linear, weight=w) for w in weights]
            yield from bench_linear(f"torch {name}", theirs, size, pool.num_threads, limits, budget_s)
        ours: list[Matrix] = [partial(Bf16Linear.pack(pool, w).forward, pool) for w in weights]
        yield from bench_linear(f"bf16 {name}", ours, size, pool.num_threads, limits, budget_s)


def measure_limits(pool: Pool) -> dict[str, float]:
    """Bytes and operations per second."""
    return {"read": read_bandwidth(pool), "int8": dot_peak(pool, "int8"), "bf16": dot_peak(pool, "bf16")}


def bench(threads: int, budget_s: float, with_torch: bool) -> Iterator[dict[str, object]]:
    with Pool(threads) as pool:
        limits = measure_limits(pool)
        rounded = {name: round(value / 1e9, 1) for name, value in limits.items()}
        yield {"kernel": "limits (1e9/s)", "isa": pool.isa, "threads": threads, **rounded}
        stack = make_experts(pool)
        for precision in PRECISIONS:
            yield from bench_experts(pool, stack, precision, limits, budget_s)
        del stack
        torch.set_num_threads(threads)
        yield from bench_linears(pool, limits, budget_s, with_torch)
        limits = measure_limits(pool)  # again: a neighbour's load shows as a difference
        rounded = {name: round(value / 1e9, 1) for name, value in limits.items()}
        yield {"kernel": "limits, after", "isa": pool.isa, "threads": threads, **rounded}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--torch", action="store_true", help="torch's BF16 linear beside ours")
    options = parser.parse_args()
    print_rows(options, lambda threads: bench(threads, options.seconds, options.torch))


if __name__ == "__main__":
    main()
