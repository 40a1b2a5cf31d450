"""Direct links: one stream socket per (attention worker, shard); no global step, a failure is one link's."""

from moonshard.transport.links.dispatcher import LinkDispatcher, LinkHandle
from moonshard.transport.links.endpoint import LinkEndpoint

__all__ = ["LinkDispatcher", "LinkEndpoint", "LinkHandle"]
