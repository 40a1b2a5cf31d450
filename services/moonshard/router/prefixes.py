"""Which attention worker has last run a prompt that begins alike. A guess that costs nothing when wrong.

Prompts are cut into chunks of CHUNK tokens; a chunk's hash covers all before it. For each hash the last worker is
remembered, so the longest known beginning names the worker whose prefix cache most probably holds it.
"""

from collections import OrderedDict
from collections.abc import Sequence

CHUNK = 64
MAX_CHUNKS = 1024
MAX_REMEMBERED = 65_536


def chunk_hashes(token_ids: Sequence[int]) -> list[int]:
    """One per full chunk. The last token of a prompt always has to be run, so it is never part of one."""
    found: list[int] = []
    parent = 0
    for end in range(CHUNK, min(len(token_ids), CHUNK * MAX_CHUNKS + 1), CHUNK):
        parent = hash((parent, tuple(token_ids[end - CHUNK : end])))
        found.append(parent)
    return found


class PrefixIndex:
    """Bounded; what was not seen for longest is forgotten first."""

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        self._ranks: OrderedDict[int, int] = OrderedDict()
        self._max_remembered = max_remembered

    def note(self, hashes: Sequence[int], rank: int) -> None:
        """The worker runs, or has run, this beginning."""
        for value in hashes:
            self._ranks[value] = rank
            self._ranks.move_to_end(value)
        while len(self._ranks) > self._max_remembered:
            self._ranks.popitem(last=False)

    def num_cached(self, hashes: Sequence[int]) -> dict[int, int]:
        """By rank, how many first tokens the worker probably holds."""
        found: dict[int, int] = {}
        for number, value in enumerate(hashes, 1):
            rank = self._ranks.get(value)
            if rank is None:
                break
            found[rank] = number * CHUNK
        return found

    def forget(self, rank: int) -> None:
        """The worker is gone, and its cache with it."""
        for value in [value for value, holder in self._ranks.items() if holder == rank]:
            del self._ranks[value]
