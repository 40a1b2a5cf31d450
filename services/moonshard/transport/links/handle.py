"""What a dispatcher has on its way: the handle of one dispatch, and the link to one shard."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from moonshard.errors import ProtocolMismatch, TransportError
from moonshard.transport.links import handshake
from moonshard.transport.links.routing import ShardRows
from moonshard.transport.links.stream import Stream
from moonshard.transport.routing_table import RoutingTable
from moonshard.transport.wire import Kind


@dataclass(slots=True, eq=False)
class LinkHandle:
    """Owns the rows until combine is done, so that they can be sent again. table: by which they were.

    By shard: carriers, the links that took its rows; asked_s, when the last of them did; doubted, the instance whose
    sums were not finite, so that they were asked for anew. disturbed: a shard was lost or slow. left_out: lost shards
    that the sums go without. is_sample: one of its rows will be computed again elsewhere.
    """

    step: int
    layer: int
    x_TD: Tensor
    topk_ids_TK: Tensor
    topk_weights_TK: Tensor
    table: RoutingTable
    routes: dict[int, ShardRows] = field(default_factory=dict)
    headers: dict[int, bytes] = field(default_factory=dict)
    sums: dict[int, Tensor] = field(default_factory=dict)
    carriers: dict[int, list["ShardLink"]] = field(default_factory=dict)
    asked_s: dict[int, float] = field(default_factory=dict)
    doubted: dict[int, str] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)
    disturbed: bool = False
    is_sample: bool = False
    abandoned: bool = False

    @property
    def missing(self) -> list[int]:
        return [shard for shard in self.routes if shard not in self.sums]

    def where(self, shards: Sequence[int]) -> str:
        """The beginning of an error's message."""
        return f"shard {', '.join(map(str, shards))}, layer {self.layer}, step {self.step}"

    def num_sums_of(self, shard: int) -> int:
        """Rows of the shard's answer."""
        return self.routes[shard].num_sums


class ShardLink:
    """One copy of a shard as the dispatcher sees it.

    pending: handles whose replies are due, oldest first per (step, layer). error: why it is lost, lost_s since when.
    """

    def __init__(self, shard: int, stream: Stream, replica: int = 0) -> None:
        self.shard = shard
        self.replica = replica
        self.address = ""
        self.instance = ""
        self.stream = stream
        self.max_rows = 0
        self.pending: dict[tuple[int, int], deque[LinkHandle]] = {}
        self.error: TransportError | None = None
        self.lost_s = 0.0

    def expect_reply(self, handle: LinkHandle) -> None:
        self.pending.setdefault((handle.step, handle.layer), deque()).append(handle)
        handle.carriers.setdefault(self.shard, []).append(self)
        handle.asked_s[self.shard] = time.monotonic()

    def is_copy(self, other: "ShardLink") -> bool:
        """Whether both lead to the same copy of the same shard."""
        return (self.shard, self.replica) == (other.shard, other.replica)

    def take_pending(self, step: int, layer: int) -> LinkHandle:
        waiting = self.pending.get((step, layer))
        if not waiting:
            due = ", ".join(f"(step {s}, layer {n})" for s, n in self.pending) or "none"
            raise ProtocolMismatch(f"reply: expected one of the outstanding: {due}; got (step {step}, layer {layer})")
        handle = waiting.popleft()
        if not waiting:
            del self.pending[step, layer]
        return handle

    def last_words(self, error: TransportError) -> TransportError:
        """What the shard said before it hung up, else `error`."""
        try:
            for header, payload in self.stream.receive():
                if header.kind in (Kind.ERROR, Kind.REFUSE):
                    return ProtocolMismatch(f"the shard closed the link: {handshake.text(payload)}")
        except TransportError:
            pass
        return error
