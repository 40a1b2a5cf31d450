"""What this machine could do at best, measured with the pool's threads: the yardstick of every kernel figure."""

import time
from collections.abc import Callable

import torch

from moonshard.kernels.library import native
from moonshard.kernels.pool import Pool

_BYTES = 1 << 30  # far beyond any cache
_REPEATS = 200_000
_PER_REPEAT = {"int8": 2 * 24 * 64, "bf16": 2 * 24 * 32}  # operations; native/limits.h


def best_s(run: Callable[[], object], rounds: int) -> float:
    """Shortest of `rounds` runs, in seconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def read_bandwidth(pool: Pool, data: torch.Tensor | None = None, rounds: int = 5) -> float:
    """Bytes per second that the pool reads from memory, of `data` (or of a gibibyte made here)."""
    data = torch.ones(_BYTES, dtype=torch.uint8) if data is None else data
    num_bytes = data.numel() * data.element_size() // (1 << 20) * (1 << 20)
    return num_bytes / best_s(lambda: native().ms_read_all(pool.handle, data.data_ptr(), num_bytes), rounds)


def dot_peak(pool: Pool, kind: str, rounds: int = 5) -> float:
    """Operations per second of dot products on registers, `kind` "int8" or "bf16" (multiply and add count two)."""
    items = pool.num_threads * 4
    seconds = best_s(lambda: native().ms_peak(pool.handle, kind == "bf16", _REPEATS, items), rounds)
    return _PER_REPEAT[kind] * _REPEATS * items / seconds
