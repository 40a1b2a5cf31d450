"""What a shard has before it: the link to one attention worker, and the messages that wait to be computed."""

import time
from dataclasses import dataclass

from torch import Tensor

from moonshard.transport import wire
from moonshard.transport.links.slab import Slab
from moonshard.transport.links.stream import Stream


class SourceLink:
    """One attention worker as the shard sees it; `source` is -1 until its HELLO is accepted."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.source = -1
        self.num_waiting = 0
        self.opened_at = time.monotonic()

    @property
    def name(self) -> str:
        return f"attention worker {self.source}" if self.source >= 0 else "a stranger"


@dataclass(slots=True, eq=False)
class Waiting:
    """A DISPATCH that has been read and checked, and where its answer goes."""

    link: SourceLink
    header: wire.Header
    ids_RK: Tensor
    weights_RK: Tensor
    x_RD: Tensor
    num_sums: int
    slab: Slab | None = None  # to use again once answered
