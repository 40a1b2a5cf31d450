"""What a worker hears of where experts are, from the link's threads; kept until somebody in the worker listens."""

import threading
from collections.abc import Callable, Mapping

from moonshard.placed import Placement
from moonshard.placement import Layer
from moonshard.rpc.placements import newer, placement_to_proto
from moonshard.v1 import control_pb2 as pb

Follower = Callable[[Placement, Mapping[int, Layer]], None]
"""(the placement now, the layers of it that were told anew)."""


class PlacementNews:
    """current: the newest that the router has told of."""

    def __init__(self, start: Placement) -> None:
        self.current = start
        self._follower: Follower | None = None
        self._hold: Callable[[pb.Hold], None] | None = None
        self._waiting: list[pb.Hold] = []
        self._lock = threading.RLock()

    def follow(self, follower: Follower) -> None:
        """`follower` hears of what there is, and of every change from now on, at once and in order."""
        with self._lock:
            self._follower = follower
            follower(self.current, dict(zip(self.current.moe_layers, self.current.layers, strict=True)))

    def obey(self, hold: Callable[[pb.Hold], None]) -> None:
        """`hold` takes every Hold, those that came before included."""
        with self._lock:
            self._hold = hold
            for order in self._waiting:
                hold(order)
            self._waiting.clear()

    def tell(self, message: pb.Placement) -> None:
        """Raises ConfigError for layers or experts that do not exist."""
        with self._lock:
            if found := newer(self.current, message):
                self.current, layers = found
                if self._follower:
                    self._follower(self.current, layers)

    def order(self, hold: pb.Hold) -> None:
        with self._lock:
            if self._hold:
                self._hold(hold)
            else:
                self._waiting.append(hold)

    def whole(self) -> pb.Placement | None:
        """For a router that may not know; None at the start."""
        return placement_to_proto(self.current) if self.current.generation else None
