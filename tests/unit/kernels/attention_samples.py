"""Random sequences in a paged cache, and attention over them in float64.

Legend: T rows, H heads, C cached width, L of it the latent, S slots.
"""

import torch
from torch import Tensor

from moonshard.kernels.attention import PagedStep


def make_step(
    chunks: list[tuple[int, int]], width: int, block_size: int = 4, dtype: torch.dtype = torch.float32
) -> PagedStep:
    """A sequence for each (start, length), its blocks scattered, its cache full of normal values."""
    blocks = [-(-(start + length) // block_size) for start, length in chunks]
    order = torch.randperm(sum(blocks), dtype=torch.int32)
    table = torch.full((len(chunks), max(blocks, default=0)), -1, dtype=torch.int32)
    for line, part in zip(table, order.split(blocks) if blocks else [], strict=True):
        line[: len(part)] = part
    positions = [torch.arange(start, start + length, dtype=torch.int32) for start, length in chunks]
    positions_T = torch.cat([*positions, torch.empty(0, dtype=torch.int32)])
    lengths = torch.tensor([length for _, length in chunks], dtype=torch.int64)
    sequence_T = torch.arange(len(chunks), dtype=torch.int32).repeat_interleave(lengths)
    at = positions_T.long()
    written = table[sequence_T.long(), at // block_size] * block_size + positions_T % block_size
    cache = torch.randn(1, sum(blocks) * block_size, width).to(dtype)
    return PagedStep(written.int(), sequence_T, positions_T + 1, table, block_size, cache)


def keys_of(step: PagedStep, row: int) -> Tensor:
    """float64 [visible, C] of one row."""
    positions = torch.arange(int(step.visible_T[row]))
    blocks = step.blocks_BM[int(step.sequence_T[row])][positions // step.block_size]
    return step.cache_LSC[0, blocks.long() * step.block_size + positions % step.block_size].double()


def expected_attention(q_THC: Tensor, step: PagedStep, latent: int, scale: float) -> Tensor:
    """[T, H, L] in float64."""
    rows = []
    for row, q_HC in enumerate(q_THC.double()):
        keys_SC = keys_of(step, row)
        weights_HS = (q_HC @ keys_SC.T * scale).softmax(-1)
        rows.append(weights_HS @ keys_SC[:, :latent])
    return torch.stack(rows)


def one_row(step: PagedStep, row: int) -> PagedStep:
    """The step of that row alone, in the same cache."""
    pick = slice(row, row + 1)
    parts = (part[pick].contiguous() for part in (step.written_T, step.sequence_T, step.visible_T))
    return PagedStep(*parts, step.blocks_BM, step.block_size, step.cache_LSC)
