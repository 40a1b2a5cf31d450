"""moonshard.v1.Workers: one stream per worker, for as long as it lives."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from moonshard.errors import ConfigError, Unavailable
from moonshard.router.cell import Cell
from moonshard.router.connections import Connection
from moonshard.v1 import control_pb2 as pb
from moonshard.v1.control_pb2_grpc import WorkersServicer

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Workers"].full_name


class WorkersService(WorkersServicer):
    """pause: between two parts of what a worker says."""

    def __init__(self, cell: Cell, pause: Callable[[], Awaitable[None]]) -> None:
        self._cell = cell
        self._pause = pause

    async def Join(
        self, request_iterator: AsyncIterator[pb.WorkerMessage], context: Any
    ) -> AsyncIterator[pb.RouterMessage]:
        """Raises ConfigError, FAILED_PRECONDITION on the wire, for a worker that does not belong to this cell."""
        stream = asyncio.current_task()
        assert stream is not None, "servicers run in tasks"
        connection = self._cell.join(await _first(request_iterator), stream.cancel)
        reader = asyncio.create_task(self._read(connection, request_iterator))
        reader.add_done_callback(lambda _: connection.end())
        problem = "its stream broke"
        try:
            async for message in connection.messages():
                yield message
            problem = "the router ended"
            if connection.makes_way:
                raise Unavailable("this router makes way for another")  # the code that a worker seeks the next one at
            if reader.done():
                reader.result()  # raises what the reader met
                problem = connection.last_words or "it left"
        except ConfigError as error:
            problem = f"it broke the protocol: {error}"
            raise
        finally:
            reader.cancel()
            self._cell.lost(connection, problem)

    async def _read(self, connection: Connection, messages: AsyncIterator[pb.WorkerMessage]) -> None:
        async for message in messages:
            kind = message.WhichOneof("body")
            if kind == "leave":
                connection.last_words = message.leave.reason
            elif kind == "outputs":
                for _ in self._cell.deliver(connection.worker_id, message.outputs):
                    await self._pause()
            else:
                self._cell.receive(connection.worker_id, message)


async def _first(messages: AsyncIterator[pb.WorkerMessage]) -> pb.Join:
    async for message in messages:
        if message.WhichOneof("body") != "join":
            raise ConfigError("join", f"must be a stream's first message, got {message.WhichOneof('body')}")
        return message.join
    raise ConfigError("join", "must be a stream's first message, got the stream's end")
