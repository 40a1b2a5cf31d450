"""Random experts in the published layout, with their exact values beside them."""

from dataclasses import dataclass

import pytest
import torch

from moonshard import kernels

ISAS = ("avx512", "avx512_vnni", "avx_vnni", "avx2", "portable")


def pool_or_skip(num_threads: int, isa: str) -> kernels.Pool:
    """A pool on a named instruction set; skips where the processor lacks it."""
    try:
        return kernels.Pool(num_threads, isa)
    except ValueError:
        pytest.skip(f"no {isa} here")


@dataclass
class Matrix:
    """One INT4 matrix: published form and exact values [out, in] in float64."""

    packed: torch.Tensor
    scale: torch.Tensor
    exact: torch.Tensor


def make_matrix(outputs: int, inputs: int) -> Matrix:
    """All sixteen values, scales around 0.02."""
    q = torch.randint(-8, 8, (outputs, inputs))
    scale = (torch.rand(outputs, inputs // 32) * 0.02 + 0.01).bfloat16()
    words = ((q + 8).view(outputs, -1, 8) << torch.arange(0, 32, 4)).sum(-1)
    packed = torch.where(words >= 1 << 31, words - (1 << 32), words).int()
    return Matrix(packed, scale, q.double() * scale.double().repeat_interleave(32, 1))


@dataclass
class Experts:
    """A loaded stack and its matrices, by expert and name."""

    stack: kernels.Int4Experts
    matrices: list[dict[str, Matrix]]


def make_experts(first: int, count: int, width: int, hidden: int, seed: int = 0) -> Experts:
    """`count` random experts, loaded with one thread."""
    torch.manual_seed(seed)
    stack = kernels.Int4Experts(first, count, width, hidden)
    shapes = {"gate": (hidden, width), "up": (hidden, width), "down": (width, hidden)}
    matrices = [{name: make_matrix(*shape) for name, shape in shapes.items()} for _ in range(count)]
    with kernels.Pool(1) as pool:
        for local, by_name in enumerate(matrices):
            for name, matrix in by_name.items():
                stack.load(pool, first + local, name, matrix.packed, matrix.scale)
    return Experts(stack, matrices)
