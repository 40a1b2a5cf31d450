"""What a dispatcher went through: numbers for metrics, and suspicions for whoever must hear of them."""

import logging
from collections.abc import Callable
from typing import NamedTuple

from moonshard.transport.links.handle import LinkHandle
from moonshard.transport.links.patience import HedgeBudget

_log = logging.getLogger(__name__)


class Suspicion(NamedTuple):
    """is_wrong: its answers are, so it should not serve on; else it is slow."""

    shard: int
    replica: int
    reason: str
    is_wrong: bool


class Recovery:
    """tell: called with each suspicion. paused: called with the seconds of each combine that had to ask again."""

    def __init__(self) -> None:
        self.num_redispatches = 0
        self.num_hedges = 0
        self.budget = HedgeBudget()
        self.num_suspicions = 0
        self.trusts_everyone = False
        self.tell: Callable[[Suspicion], None] = lambda _: None
        self.paused: Callable[[float], None] = lambda _: None

    def suspect(self, shard: int, replica: int, reason: str, is_wrong: bool) -> None:
        self.num_suspicions += 1
        _log.warning("shard %d, copy %d is suspected: %s", shard, replica, reason)
        self.tell(Suspicion(shard, replica, reason, is_wrong))

    def believe(self, what: str) -> None:
        """Two computations agree that a result is not finite: the model's doing, no shard's."""
        if not self.trusts_everyone:
            _log.error("%s: the checkpoint's numbers, not a fault; no longer watched for", what)
        self.trusts_everyone = True

    def combined(self, handle: LinkHandle, wait_s: float) -> None:
        if handle.disturbed:
            self.paused(wait_s)
