"""The paged latent KV cache.

L layers, N blocks of S slots, C = kv_lora_rank + qk_rope_head_dim: the normed latent and the rotated shared rope key
of one token (specification 2.3). A token's slot number is block * S + offset.
"""

import torch
from torch import Tensor


class LatentCache:
    """One tensor for all layers, allocated once."""

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        latent_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.slots_LSC = torch.zeros(num_layers, num_blocks * block_size, latent_dim, dtype=dtype, device=device)

    @property
    def resident_bytes(self) -> int:
        return self.slots_LSC.numel() * self.slots_LSC.element_size()

    def slots(self, block_table: list[int], start: int, stop: int) -> list[int]:
        """Slot numbers of a sequence's tokens [start, stop)."""
        size = self.block_size
        return [block_table[i // size] * size + i % size for i in range(start, stop)]

    def write(self, layer: int, slots_T: Tensor, latent_TC: Tensor) -> None:
        self.slots_LSC[layer].index_copy_(0, slots_T, latent_TC)

    def read(self, layer: int, slots: Tensor) -> Tensor:
        """Latents at `slots` (any shape): [*slots.shape, C]."""
        return self.slots_LSC[layer][slots]
