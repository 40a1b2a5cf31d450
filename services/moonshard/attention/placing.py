"""What an attention worker does when experts move: rows go by the new table from the next step on, and it says so."""

import threading
from collections.abc import Mapping

from moonshard.placed import Placement
from moonshard.placement import Layer
from moonshard.transport.links import LinkDispatcher
from moonshard.transport.routing_table import RoutingTable
from moonshard.v1 import control_pb2 as pb
from moonshard.worker import Worker


class FollowedPlacement:
    """table: the newest. Until a dispatcher is attached nothing is on its way, so that all is followed at once."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._dispatcher: LinkDispatcher | None = None
        self._lock = threading.Lock()
        self.table = RoutingTable(worker.spec)
        worker.inbox.placements.follow(self._changed)

    def attach(self, dispatcher: LinkDispatcher) -> None:
        with self._lock:
            self._dispatcher = dispatcher
            dispatcher.update_table(self.table, lambda: None)

    def _changed(self, placement: Placement, layers: Mapping[int, Layer]) -> None:
        """In a thread of the router's link, but for the first time."""
        with self._lock:
            generation = placement.generation
            self.table = self.table.changed(layers, generation)
            if self._dispatcher:
                self._dispatcher.update_table(self.table, lambda: self._say_placed(generation))
            else:
                self._say_placed(generation)

    def _say_placed(self, generation: int) -> None:
        self._worker.link.send(pb.WorkerMessage(placed=pb.Placed(generation=generation)))
