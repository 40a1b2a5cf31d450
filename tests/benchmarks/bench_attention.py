"""Time a decoder layer's native calls against the bytes they must read and the machine's limits, same run.

    python -m tests.benchmarks.bench_attention [--threads 1 2] [--shapes S R] [--seconds 0.3] [--json FILE]

S: hidden 1024, 8 heads; R: K2.5's attention. `block` is attention with norms and gate, `shared` the shared expert.
Decode rows (1, 8, 32) belong to as many sequences, 512 rows are a prompt's chunk of one; `context` tokens are cached
before. Layers come from a ring larger than the caches. `memory %` is weights and cached keys at the measured read
bandwidth; shares above 100 % come from the cache, and many rows are limited by arithmetic instead.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from moonshard.kernels import Pool
from moonshard.kernels.attention import Activations, AttentionBlock, AttentionWeights, Gate, PagedStep, SwiGLU
from moonshard.kernels.limits import dot_peak, read_bandwidth
from tests.benchmarks.kernel_table import figures, median_s, new_parser, print_rows

NOPE, ROPE, VALUE, LATENT, BLOCK_SIZE = 128, 64, 128, 512, 16
ROWS, CONTEXTS = (1, 8, 32, 512), (64, 512)
RING_BYTES = 300 << 20


@dataclass(frozen=True)
class Shape:
    hidden: int
    heads: int
    q_rank: int
    experts: int
    shared_width: int

    def operations(self, contexts: list[int]) -> int:
        """Multiply-adds count two; products of the block and attention over `contexts` keys, one for each row."""
        width = LATENT + ROPE
        weights = self.hidden * (self.q_rank + width) + self.q_rank * self.heads * (NOPE + ROPE)
        weights += self.heads * LATENT * (NOPE + VALUE) + self.hidden * (self.heads * VALUE + self.experts)
        return 2 * (len(contexts) * weights + sum(contexts) * self.heads * (width + LATENT))


SHAPES = {"S": Shape(1024, 8, 512, 64, 512), "R": Shape(7168, 64, 1536, 384, 2048)}


def random_bf16(*shape: int) -> torch.Tensor:
    """Values do not matter to the clock, their spread does not either; a repeated row is quick to make."""
    row = torch.randn(shape[-1]).bfloat16() * shape[-1] ** -0.5
    made: torch.Tensor = row.expand(*shape).contiguous()
    return made


def make_block(pool: Pool, s: Shape) -> AttentionBlock:
    weights = AttentionWeights(
        input_norm=torch.ones(s.hidden),
        q_a_norm=torch.ones(s.q_rank),
        kv_a_norm=torch.ones(LATENT),
        post_norm=torch.ones(s.hidden),
        qkv_a=random_bf16(s.q_rank + LATENT + ROPE, s.hidden),
        q_b=random_bf16(s.heads * (NOPE + ROPE), s.q_rank),
        kv_b=random_bf16(s.heads * (NOPE + VALUE), LATENT),
        o=random_bf16(s.hidden, s.heads * VALUE),
    )
    gate = Gate(pool, random_bf16(s.experts, s.hidden).float(), torch.zeros(s.experts), top_k=8)
    return AttentionBlock(pool, weights, gate, heads=s.heads, nope=NOPE, eps=1e-5, latent_eps=1e-5, scale=0.07)


def make_step(rows: int, context: int) -> PagedStep:
    """`rows` sequences of one new token each, or one of 512 new tokens, after `context` cached ones."""
    sequences, length = (1, rows) if rows > 32 else (rows, 1)
    blocks = -(-(context + length) // BLOCK_SIZE)
    table = torch.randperm(sequences * blocks, dtype=torch.int32).view(sequences, blocks)
    sequence = torch.arange(sequences, dtype=torch.int32).repeat_interleave(length)
    positions = torch.arange(context, context + length, dtype=torch.int32).repeat(sequences)
    written = table[sequence.long(), positions.long() // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    cache = torch.randn(1, sequences * blocks * BLOCK_SIZE, LATENT + ROPE)
    return PagedStep(written, sequence, positions + 1, table, BLOCK_SIZE, cache)


def bench_blocks(
    pool: Pool, s: Shape, activations: Activations, limits: dict[str, float], budget_s: float
) -> Iterator[dict[str, object]]:
    first = make_block(pool, s)
    ring = [first, *(make_block(pool, s) for _ in range(RING_BYTES // first.resident_bytes))]
    for rows, context in itertools.product(ROWS, CONTEXTS):
        step, x, rotations = make_step(rows, context), torch.randn(rows, s.hidden), torch.ones(rows, ROPE)
        several = 1 if rows > 32 else len(ring)

        def run(step: PagedStep = step, x: torch.Tensor = x, r: torch.Tensor = rotations, n: int = several) -> None:
            for block in ring[:n]:
                block(pool, 0, x, step, r, activations)

        seen = step.visible_T.tolist()
        keys = sum(seen) if rows <= 32 else max(seen)
        num_bytes = first.resident_bytes + keys * (LATENT + ROPE) * 4
        found = figures(median_s(run, budget_s) / several, num_bytes, s.operations(seen), limits, "bf16")
        yield {"call": "block", "activations": activations, "rows": rows, "context": context, **found}


def bench_shared(
    pool: Pool, s: Shape, activations: Activations, limits: dict[str, float], budget_s: float
) -> Iterator[dict[str, object]]:
    weights = random_bf16(2 * s.shared_width, s.hidden), random_bf16(s.hidden, s.shared_width)
    first = SwiGLU(pool, *weights)
    ring = [first, *(SwiGLU(pool, *weights) for _ in range(RING_BYTES // first.resident_bytes))]
    for rows in ROWS:
        x = torch.zeros(rows, s.hidden)
        h = torch.randn(rows, s.hidden).to(getattr(torch, activations))
        several = 1 if rows > 32 else len(ring)

        def run(x: torch.Tensor = x, h: torch.Tensor = h, n: int = several) -> None:
            for swiglu in ring[:n]:
                swiglu.add_to(pool, x, h)

        operations = 6 * s.hidden * s.shared_width * rows
        found = figures(median_s(run, budget_s) / several, first.resident_bytes, operations, limits, "bf16")
        yield {"call": "shared", "activations": activations, "rows": rows, **found}


def bench(threads: int, names: list[str], budget_s: float) -> Iterator[dict[str, object]]:
    with Pool(threads) as pool:
        limits = {"read": read_bandwidth(pool), "bf16": dot_peak(pool, "bf16")}
        rounded = {name: round(value / 1e9, 1) for name, value in limits.items()}
        yield {"call": "limits (1e9/s)", "isa": pool.isa, "threads": threads, **rounded}
        for name, activations in itertools.product(names, ("float32", "bfloat16")):
            yield {"call": "shape", "name": name, "threads": threads, **asdict(SHAPES[name])}
            for part in (bench_blocks, bench_shared):
                yield from part(pool, SHAPES[name], activations, limits, budget_s)  # type: ignore[arg-type]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=sorted(SHAPES))
    options = parser.parse_args()
    print_rows(options, lambda threads: bench(threads, options.shapes, options.seconds))


if __name__ == "__main__":
    main()
