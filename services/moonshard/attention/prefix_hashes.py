"""Names of block contents: a digest of a block's tokens and of all before them. Pure.

Keyed by nothing but content, so equal prefixes are equal digests in every worker; 128 bits of BLAKE2 leave no collision
to hope for, by chance or by malice.
"""

from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b

Digest = bytes
Salts = Mapping[int, bytes]
"""By block number: what beside token ids decides the content of the block, such as hashes of images in it."""

DIGEST_BYTES = 16


def extend_hashes(digests: list[Digest], tokens: Sequence[int], block_size: int, salts: Salts) -> None:
    """Append the digests of the full blocks of `tokens` that `digests` does not hold yet."""
    for index in range(len(digests), len(tokens) // block_size):
        parent = digests[-1] if digests else bytes(DIGEST_BYTES)
        ids = array("i", tokens[index * block_size : (index + 1) * block_size]).tobytes()
        digests.append(blake2b(parent + ids + salts.get(index, b""), digest_size=DIGEST_BYTES).digest())


def short_hash(digest: Digest) -> int:
    """The 64 bits by which events name a block."""
    return int.from_bytes(digest[:8])
