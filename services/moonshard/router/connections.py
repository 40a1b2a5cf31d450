"""The open control streams: one outbox per worker, drained by its stream. Runs in the event loop's thread."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from moonshard.router.flight import Flight
from moonshard.router.members import Role, WorkerId
from moonshard.router.wire import admit_message
from moonshard.v1 import control_pb2 as pb

logger = logging.getLogger(__name__)

MAX_PENDING = 4096


class Connection:
    """Messages to one worker, in order. `cut` breaks the stream of a worker that has stopped reading.

    last_words: why the worker leaves, when it said so. makes_way: the stream ends because another router comes.
    """

    def __init__(self, worker_id: WorkerId, cut: Callable[[], object]) -> None:
        self.worker_id = worker_id
        self.last_words = ""
        self.makes_way = False
        self._cut = cut
        self._outbox: deque[pb.RouterMessage] = deque()
        self._changed = asyncio.Event()
        self._ended = False

    def send(self, message: pb.RouterMessage) -> None:
        if len(self._outbox) >= MAX_PENDING:
            logger.error("%s does not read: %d messages are waiting", self.worker_id, MAX_PENDING)
            self._cut()
            return
        self._outbox.append(message)
        self._changed.set()

    def end(self) -> None:
        """End the stream after what is in the outbox."""
        self._ended = True
        self._changed.set()

    async def messages(self) -> AsyncIterator[pb.RouterMessage]:
        """Until `end`."""
        while not self._ended:
            await self._changed.wait()
            self._changed.clear()
            while self._outbox:
                yield self._outbox.popleft()


class Connections:
    """The open connections by worker. Carries out the engine's WorkerCalls; absent workers are passed over."""

    def __init__(self) -> None:
        self._open: dict[WorkerId, Connection] = {}
        self._emptied = asyncio.Event()
        self._emptied.set()

    def open(self, worker_id: WorkerId, cut: Callable[[], object]) -> Connection:
        assert worker_id not in self._open, "membership lets a rank join once"
        self._open[worker_id] = connection = Connection(worker_id, cut)
        self._emptied.clear()
        return connection

    def close(self, connection: Connection) -> None:
        del self._open[connection.worker_id]
        if not self._open:
            self._emptied.set()

    def send(self, worker_id: WorkerId, message: pb.RouterMessage) -> None:
        if connection := self._open.get(worker_id):
            connection.send(message)

    def admit(self, rank: int, flights: Sequence[Flight]) -> None:
        self.send(WorkerId(Role.ATTENTION, rank), admit_message(flights))

    def abort(self, rank: int, sequence_ids: Sequence[str]) -> None:
        self.send(WorkerId(Role.ATTENTION, rank), pb.RouterMessage(abort=pb.Abort(request_ids=sequence_ids)))

    def shut_down(self, reason: str) -> None:
        """Ask every worker to end."""
        for connection in self._open.values():
            connection.send(pb.RouterMessage(shutdown=pb.Shutdown(reason=reason)))

    def end_all(self) -> None:
        """End the streams of workers that did not leave when they were asked to."""
        for connection in self._open.values():
            connection.end()

    def make_way(self) -> None:
        """End every stream so that the worker seeks this router's successor."""
        for connection in self._open.values():
            connection.makes_way = True
            connection.end()

    async def all_closed(self) -> None:
        """Returns once no worker is connected."""
        await self._emptied.wait()
