"""Which KV blocks are whose. Pure; the tensors are in kv_cache.py."""


class BlockPool:
    """Free list of KV blocks. Ask `can_allocate`, then `allocate`; running out is a bug of the asker."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # Taken from the end, so that low block numbers go first.
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def can_allocate(self, count: int) -> bool:
        return count <= len(self._free)

    def allocate(self, count: int) -> list[int]:
        assert self.can_allocate(count), f"{count} blocks asked, {len(self._free)} free"
        return [self._free.pop() for _ in range(count)]

    def free(self, blocks: list[int]) -> None:
        assert not set(blocks) & set(self._free), "a block was freed twice"
        self._free.extend(reversed(blocks))


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold num_tokens."""
    return -(-num_tokens // block_size)
