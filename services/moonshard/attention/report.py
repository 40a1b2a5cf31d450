"""What the worker tells the router after an iteration."""

from collections.abc import Callable, Sequence

from moonshard.attention.engine import Engine, Output
from moonshard.attention.wire import events_message, free_credits, outputs_message
from moonshard.v1 import control_pb2 as pb


class Report:
    """Sends outputs with what is free now; what is free also alone, whenever it changed; and the cache's events."""

    def __init__(self, engine: Engine, send: Callable[[pb.WorkerMessage], None]) -> None:
        self._engine = engine
        self._send = send
        self._told = free_credits(engine)

    def send(self, outputs: Sequence[Output]) -> None:
        if events := self._engine.scheduler.tables.take_events():
            self._send(events_message(events))
        free = free_credits(self._engine)
        if outputs or free != self._told:
            self._send(outputs_message(outputs, free))
            self._told = free
