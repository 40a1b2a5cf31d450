"""The news of one iteration in parts, with a turn of the event loop between them. Pure.

First tokens come first: the wait for them is the one that callers feel. And parts are small, because gRPC lets one new
call in per few turns of the loop: long turns would keep callers at the door who need no more than a refusal.
"""

from collections.abc import Callable, Sequence

from moonshard.router.flight import SequenceUpdate

# Sequences whose next tokens are taken in one turn.
PART = 8


def in_parts(
    updates: Sequence[SequenceUpdate], has_begun: Callable[[str], bool]
) -> tuple[list[list[SequenceUpdate]], list[SequenceUpdate]]:
    """Those before the last, and the last, which may be empty."""
    first = [update for update in updates if not has_begun(update.sequence_id)]
    known = set(map(id, first))
    rest = [update for update in updates if id(update) not in known]
    parts = [first, *(rest[start : start + PART] for start in range(0, len(rest), PART))]
    *before, last = [part for part in parts if part] or [first]
    return before, last
