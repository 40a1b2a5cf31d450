"""The expert side of the lockstep transport: every layer's rows of all attention workers at once. Not thread-safe.

Shapes: R rows of a batch, D hidden size, K experts per token.
"""

import time

import torch
from torch import Tensor

from moonshard.errors import ProtocolMismatch, TransportError
from moonshard.transport.all_to_all.group import Group
from moonshard.transport.all_to_all.lockstep import Lockstep, message_bytes, pack_message
from moonshard.transport.all_to_all.meeting import Groups, OneGroup
from moonshard.transport.contract import ExpertBatch, Segment, TransportStats, WireSpec, mask_foreign
from moonshard.transport.wire import HEADER_BYTES, Header


class AllToAllEndpoint:
    """Shard `shard`. Batches hold every row of the step; rows without a local expert have only -1 ids.

    When the group is lost, the batch under way is of no use: its rows come again in the next group.
    """

    def __init__(self, groups: Groups | Group, spec: WireSpec, shard: int | None = None, num_sources: int = 0) -> None:
        """shard, num_sources: as configured; those of the group, where it is given itself. Then this blocks until all
        its ranks are here and raises ProtocolMismatch when their specs differ."""
        self.spec = spec
        self._groups = OneGroup(groups) if isinstance(groups, Group) else groups
        self._lockstep: Lockstep | None = None
        if isinstance(groups, Group):
            shard, num_sources = groups.rank, groups.world_size - spec.num_shards
            self._lockstep = Lockstep(groups, spec)
        assert shard is not None, "only a group tells which shard this is"
        self.shard = shard
        self.stats = TransportStats.for_peers(num_sources)
        self._place = len(spec.moe_layers)

    def receive(self, timeout_s: float) -> ExpertBatch | None:
        """The next layer's rows. None only while all ranks sleep, or no group is there; inside a step the group's own
        limit holds."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if (lockstep := self._lockstep or self._join(deadline)) is None:
                    return None
                if not self._await_step(lockstep, deadline):
                    return None
                return self._receive_layer(lockstep, self.spec.moe_layers[self._place])
            except ProtocolMismatch:
                raise
            except TransportError as error:
                self._lose(error)

    def reply(self, batch: ExpertBatch, y_RD: Tensor) -> None:
        assert y_RD.shape == batch.x_RD.shape, f"{tuple(y_RD.shape)} sums for {tuple(batch.x_RD.shape)} rows"
        try:
            self._reply(batch, y_RD.detach().to(self.spec.row_dtype))
        except TransportError as error:
            self._lose(error)

    def close(self) -> None:
        self._lockstep = None
        self._groups.close()

    def _join(self, deadline: float) -> Lockstep | None:
        """None when no group comes before the deadline."""
        if group := self._groups.next(max(0.0, deadline - time.monotonic())):
            try:
                self._lockstep, self._place = Lockstep(group, self.spec), len(self.spec.moe_layers)
            except ProtocolMismatch:
                raise
            except TransportError as error:
                self._groups.lose(group, error)
        return self._lockstep

    def _lose(self, error: TransportError) -> None:
        """Leave the group. Raises `error` when no other will come."""
        lockstep, self._lockstep = self._lockstep, None
        if lockstep is None:
            raise error
        self._groups.lose(lockstep.group, error)

    def _await_step(self, lockstep: Lockstep, deadline: float) -> bool:
        """Until a layer with rows comes next; False when everybody sleeps until the deadline."""
        while self._place == len(self.spec.moe_layers):
            if not lockstep.asleep:
                if lockstep.agree(0):
                    self._place = lockstep.place
            elif not lockstep.sleep(deadline - time.monotonic()) and time.monotonic() >= deadline:
                return False
        return True

    def _reply(self, batch: ExpertBatch, y_RD: Tensor) -> None:
        lockstep: Lockstep = batch.ticket
        rows = lockstep.rows_at(self._place)
        headers = [lockstep.reply_header(self.shard, batch.layer, num_rows) for num_rows in rows]
        messages = [
            pack_message(header, [y_RD], lockstep.group.device)
            for header, y_RD in zip(headers, y_RD.split_with_sizes(rows), strict=True)
        ]
        data = torch.cat(messages)
        sizes = [0] * self.spec.num_shards + [len(message) for message in messages]
        work = lockstep.group.exchange(data.new_empty(0), [0] * lockstep.group.world_size, data, sizes)
        lockstep.group.wait(work, f"reply, {self._where(lockstep, batch.layer)}")
        self._place += 1
        for source, message in zip(lockstep.sources, messages, strict=True):
            self.stats.sent_bytes[source] += len(message)

    def _receive_layer(self, lockstep: Lockstep, layer: int) -> ExpertBatch:
        rows = lockstep.rows_at(self._place)
        headers = [
            lockstep.dispatch_header(source, layer, num_rows)
            for source, num_rows in zip(lockstep.sources, rows, strict=True)
        ]
        messages = self._receive_messages(lockstep, headers, layer)
        parts = [self._unpack(message, header) for message, header in zip(messages, headers, strict=True)]
        ids_RK, weights_RK, x_RD = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        self.stats.num_dispatches += 1
        self.stats.num_rows += x_RD.shape[0]
        ids_RK = mask_foreign(ids_RK, self.spec.experts_of(self.shard))
        return ExpertBatch(layer, x_RD, ids_RK, weights_RK, _segments(lockstep, rows), lockstep)

    def _receive_messages(self, lockstep: Lockstep, headers: list[Header], layer: int) -> list[Tensor]:
        started = time.monotonic()
        sizes = [message_bytes(header) for header in headers]
        out = torch.empty(sum(sizes), dtype=torch.uint8, device=lockstep.group.device)
        all_sizes = [0] * self.spec.num_shards + sizes
        work = lockstep.group.exchange(out, all_sizes, out.new_empty(0), [0] * lockstep.group.world_size)
        what = f"receive, {self._where(lockstep, layer)}"
        lockstep.group.wait(work, what)
        messages = list(out.split_with_sizes(sizes))
        for header, message in zip(headers, messages, strict=True):
            lockstep.check(f"{what}, attention worker {header.source}", header, message)
            self.stats.received_bytes[header.source] += len(message)
            self.stats.wait_s[header.source] += time.monotonic() - started
        return messages

    def _unpack(self, message: Tensor, header: Header) -> tuple[Tensor, Tensor, Tensor]:
        size = header.num_rows * self.spec.top_k * 4
        ids, weights, rows = message[HEADER_BYTES : HEADER_BYTES + header.payload_bytes].split_with_sizes(
            [size, size, header.payload_bytes - 2 * size]
        )
        ids_RK = ids.view(torch.int32).view(-1, self.spec.top_k)
        weights_RK = weights.view(torch.float32).view(-1, self.spec.top_k)
        return ids_RK, weights_RK, rows.view(self.spec.row_dtype).view(-1, self.spec.hidden_size)

    def _where(self, lockstep: Lockstep, layer: int) -> str:
        return f"shard {self.shard}, layer {layer}, step {lockstep.step}"


def _segments(lockstep: Lockstep, rows: list[int]) -> tuple[Segment, ...]:
    segments, stop = [], 0
    for source, num_rows in zip(lockstep.sources, rows, strict=True):
        start, stop = stop, stop + num_rows
        if num_rows:
            segments.append(Segment(source, lockstep.step, start, stop))
    return tuple(segments)
