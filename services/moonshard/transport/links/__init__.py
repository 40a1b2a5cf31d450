"""Direct links: one stream socket per (attention worker, shard); no global step, a failure is one link's."""

from moonshard.transport.links.answers import ExpertTable
from moonshard.transport.links.dialer import Target
from moonshard.transport.links.dispatcher import LinkDispatcher
from moonshard.transport.links.endpoint import LinkEndpoint
from moonshard.transport.links.handle import LinkHandle
from moonshard.transport.links.patience import Patience
from moonshard.transport.links.recheck import Disagreement, Recheck
from moonshard.transport.links.recovery import Recovery, Suspicion

__all__ = [
    "Disagreement",
    "ExpertTable",
    "LinkDispatcher",
    "LinkEndpoint",
    "LinkHandle",
    "Patience",
    "Recheck",
    "Recovery",
    "Suspicion",
    "Target",
]
