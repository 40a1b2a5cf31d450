"""The open links of a dispatcher: for each shard the one in use, and spares to its other copies."""

import select
import time
from collections.abc import Iterator

from moonshard.errors import TransportError
from moonshard.kernels.links import LinkRecord
from moonshard.transport.links.handle import ShardLink


class LinkTable:
    """current: by shard; a lost one stays, with its error, until another takes its place. version: grows when one does.

    records: of the links in use, for the totals of each shard.
    """

    def __init__(self) -> None:
        self.current: list[ShardLink] = []
        self.records: list[LinkRecord] = []
        self.version = 0
        self.poll = select.poll()
        self._spares: dict[int, list[ShardLink]] = {}
        self._by_fd: dict[int, ShardLink] = {}

    def __iter__(self) -> Iterator[ShardLink]:
        """Every link that is up."""
        return iter(list(self._by_fd.values()))

    @property
    def has_spares(self) -> bool:
        return any(self._spares.values())

    def of_descriptor(self, fd: int) -> ShardLink | None:
        return self._by_fd.get(fd)

    def add(self, link: ShardLink) -> None:
        """In use at once when its shard has no link that is up, else a spare."""
        self.poll.register(link.stream, select.POLLIN)
        self._by_fd[link.stream.fileno()] = link
        if link.shard == len(self.current):
            self.current.append(link)
            self.records.append(link.stream.record)
            self.version += 1
        elif self.current[link.shard].error:
            self._replace(link)
        else:
            self._spares.setdefault(link.shard, []).append(link)

    def watch_for_room(self, link: ShardLink) -> None:
        wanted = select.POLLIN | (select.POLLOUT if link.stream.unsent else 0)
        self.poll.modify(link.stream, wanted)

    def lose(self, link: ShardLink, error: TransportError) -> None:
        """Close one link; a spare of its shard takes its place. Nothing happens to one that is lost already."""
        if link.error:
            return
        link.error, link.lost_s = error, time.monotonic()
        self.poll.unregister(link.stream)
        del self._by_fd[link.stream.fileno()]
        link.stream.close()
        link.pending.clear()
        if link is not self.current[link.shard]:
            self._spares[link.shard].remove(link)
        elif spare := self.spare_of(link.shard, ()):
            self._spares[link.shard].remove(spare)
            self._replace(spare)

    def spare_of(self, shard: int, but: tuple[ShardLink, ...]) -> ShardLink | None:
        """Another link of the shard, rather one that owes nothing."""
        spares = [link for link in self._spares.get(shard, ()) if link not in but]
        return min(spares, key=lambda link: len(link.pending), default=None)

    def use(self, spare: ShardLink) -> None:
        """Exchange a spare and the link in use."""
        self._spares[spare.shard].remove(spare)
        old = self._replace(spare)
        self._spares[spare.shard].append(old)

    def _replace(self, link: ShardLink) -> ShardLink:
        """The shard's totals go on in the new link's record."""
        old, self.current[link.shard] = self.current[link.shard], link
        before, now = old.stream.record, link.stream.record
        for total in ("sent_bytes", "received_bytes", "waited_ns"):
            setattr(now, total, getattr(now, total) + getattr(before, total))
            setattr(before, total, 0)
        self.records[link.shard] = now
        self.version += 1
        return old
