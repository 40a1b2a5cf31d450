"""Which KV blocks are whose, and what is in those that several may read. Pure; the tensors are in kv_cache.py.

A block has as many users as block tables name it. A block without users is free; when its content is known by a hash
it stays findable until it is handed out again, the longest unused first.
"""

from collections import OrderedDict
from collections.abc import Iterable

from moonshard.attention.prefix_hashes import Digest


class BlockPool:
    """Ask `can_allocate`, then `allocate`; running out is a bug of the asker.

    forgotten: digests whose blocks can no longer be found, oldest first; the reader empties it.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.forgotten: list[Digest] = []
        # Taken from the end, so that low block numbers go first.
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._unused: OrderedDict[int, None] = OrderedDict()  # with known content, the longest unused first
        self._num_users = [0] * num_blocks
        self._digest_of: dict[int, Digest] = {}
        self._block_of: dict[Digest, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks without users, those with known content included."""
        return len(self._blank) + len(self._unused)

    @property
    def num_known(self) -> int:
        """Blocks that `find` can find."""
        return len(self._block_of)

    def can_allocate(self, count: int) -> bool:
        return count <= self.num_free

    def allocate(self, count: int) -> list[int]:
        """Blocks with one user each, to be written; what was known of them is forgotten."""
        assert self.can_allocate(count), f"{count} blocks asked, {self.num_free} free"
        taken = [self._blank.pop() if self._blank else self._evict() for _ in range(count)]
        for block in taken:
            self._num_users[block] = 1
        return taken

    def share(self, block: int) -> None:
        """One more user of a block that `find` found."""
        self._num_users[block] += 1
        self._unused.pop(block, None)

    def release(self, blocks: Iterable[int]) -> None:
        """One user less of each. Of blocks that fall out of use together the first is evicted first."""
        for block in blocks:
            assert self._num_users[block] > 0, "a block was freed twice"
            self._num_users[block] -= 1
            if self._num_users[block] == 0:
                self._retire(block)

    def publish(self, block: int, digest: Digest) -> bool:
        """Make a written block findable. False when another block with this content, or this block, already is."""
        if digest in self._block_of or block in self._digest_of:
            return False
        self._digest_of[block], self._block_of[digest] = digest, block
        return True

    def find(self, digest: Digest) -> int | None:
        return self._block_of.get(digest)

    def forget(self, blocks: Iterable[int]) -> None:
        """Make blocks unfindable; their users keep them."""
        for block in blocks:
            if (digest := self._digest_of.pop(block, None)) is not None:
                del self._block_of[digest]
                self.forgotten.append(digest)
            if block in self._unused:
                del self._unused[block]
                self._blank.append(block)

    def forget_unused(self) -> None:
        self.forget(list(self._unused))

    def _evict(self) -> int:
        block, _ = self._unused.popitem(last=False)
        self.forget([block])
        return block

    def _retire(self, block: int) -> None:
        if block in self._digest_of:
            self._unused[block] = None
        else:
            self._blank.append(block)


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold num_tokens."""
    return -(-num_tokens // block_size)
