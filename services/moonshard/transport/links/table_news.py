"""Routing tables that another thread tells a dispatcher, which adopts the newest between two steps."""

import threading
from collections.abc import Callable
from typing import NamedTuple

from moonshard.transport.routing_table import RoutingTable


class Told(NamedTuple):
    """adopted: to be called once rows go by the table, one for each table that was told."""

    table: RoutingTable
    adopted: tuple[Callable[[], None], ...]


class TableNews:
    def __init__(self) -> None:
        self._told: Told | None = None
        self._lock = threading.Lock()

    def tell(self, table: RoutingTable, adopted: Callable[[], None]) -> None:
        """From any thread."""
        with self._lock:
            before = self._told.adopted if self._told else ()
            self._told = Told(table, (*before, adopted))

    def take(self) -> Told | None:
        """The newest, once."""
        if self._told is None:
            return None
        with self._lock:
            told, self._told = self._told, None
        return told
