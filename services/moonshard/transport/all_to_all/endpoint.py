"""The expert side of the lockstep transport: every layer's rows of all attention workers at once. Not thread-safe.

Shapes: R rows of a batch, D hidden size, K experts per token.
"""

import time

import torch
from torch import Tensor

from moonshard.transport.all_to_all.group import Group
from moonshard.transport.all_to_all.lockstep import Lockstep, message_bytes, pack_message
from moonshard.transport.contract import ExpertBatch, Segment, TransportStats, WireSpec, mask_foreign
from moonshard.transport.wire import HEADER_BYTES, Header


class AllToAllEndpoint:
    """Shard `group.rank`. Batches hold every row of the step; rows without a local expert have only -1 ids."""

    def __init__(self, group: Group, spec: WireSpec) -> None:
        """Blocks until all ranks of the group are here. Raises ProtocolMismatch when their specs differ."""
        self.spec = spec
        self.shard = group.rank
        self._group = group
        self._lockstep = Lockstep(group, spec)
        self._sources = range(self._lockstep.num_sources)
        self.stats = TransportStats.for_peers(len(self._sources))
        self._next_layer = len(spec.moe_layers)

    def receive(self, timeout_s: float) -> ExpertBatch | None:
        """The next layer's rows. None only while all ranks sleep; inside a step the group's own limit holds."""
        deadline = time.monotonic() + timeout_s
        while self._next_layer == len(self.spec.moe_layers):
            if not self._lockstep.asleep:
                if self._lockstep.agree(0):
                    self._next_layer = 0
            elif not self._lockstep.sleep(deadline - time.monotonic()) and time.monotonic() >= deadline:
                return None
        return self._receive_layer(self.spec.moe_layers[self._next_layer])

    def reply(self, batch: ExpertBatch, y_RD: Tensor) -> None:
        assert y_RD.shape == batch.x_RD.shape, f"{tuple(y_RD.shape)} sums for {tuple(batch.x_RD.shape)} rows"
        y_RD = y_RD.detach().to(self.spec.row_dtype)
        rows = y_RD.split_with_sizes(self._lockstep.rows)
        headers = [self._lockstep.reply_header(self.shard, source, batch.layer) for source in self._sources]
        messages = [
            pack_message(header, [y_RD], self._group.device) for header, y_RD in zip(headers, rows, strict=True)
        ]
        data = torch.cat(messages)
        sizes = [0] * self.spec.num_shards + [len(message) for message in messages]
        work = self._group.exchange(data.new_empty(0), [0] * self._group.world_size, data, sizes)
        self._group.wait(work, f"reply, {self._where(batch.layer)}")
        self._next_layer += 1
        for source, message in enumerate(messages):
            self.stats.sent_bytes[source] += len(message)

    def close(self) -> None:
        self._group.close()

    def _receive_layer(self, layer: int) -> ExpertBatch:
        headers = [self._lockstep.dispatch_header(source, layer) for source in self._sources]
        messages = self._receive_messages(headers, layer)
        parts = [self._unpack(message, header) for message, header in zip(messages, headers, strict=True)]
        ids_RK, weights_RK, x_RD = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        self.stats.num_dispatches += 1
        self.stats.num_rows += x_RD.shape[0]
        ids_RK = mask_foreign(ids_RK, self.spec.experts_of(self.shard))
        return ExpertBatch(layer, x_RD, ids_RK, weights_RK, self._segments())

    def _receive_messages(self, headers: list[Header], layer: int) -> list[Tensor]:
        started = time.monotonic()
        sizes = [message_bytes(header) for header in headers]
        out = torch.empty(sum(sizes), dtype=torch.uint8, device=self._group.device)
        all_sizes = [0] * self.spec.num_shards + sizes
        work = self._group.exchange(out, all_sizes, out.new_empty(0), [0] * self._group.world_size)
        what = f"receive, {self._where(layer)}"
        self._group.wait(work, what)
        messages = list(out.split_with_sizes(sizes))
        for source, message in enumerate(messages):
            self._lockstep.check(f"{what}, attention worker {source}", headers[source], message)
            self.stats.received_bytes[source] += len(message)
            self.stats.wait_s[source] += time.monotonic() - started
        return messages

    def _unpack(self, message: Tensor, header: Header) -> tuple[Tensor, Tensor, Tensor]:
        size = header.num_rows * self.spec.top_k * 4
        ids, weights, rows = message[HEADER_BYTES : HEADER_BYTES + header.payload_bytes].split_with_sizes(
            [size, size, header.payload_bytes - 2 * size]
        )
        ids_RK = ids.view(torch.int32).view(-1, self.spec.top_k)
        weights_RK = weights.view(torch.float32).view(-1, self.spec.top_k)
        return ids_RK, weights_RK, rows.view(self.spec.row_dtype).view(-1, self.spec.hidden_size)

    def _segments(self) -> tuple[Segment, ...]:
        segments, stop = [], 0
        for source, num_rows in enumerate(self._lockstep.rows):
            start, stop = stop, stop + num_rows
            if num_rows:
                segments.append(Segment(source, self._lockstep.step, start, stop))
        return tuple(segments)

    def _where(self, layer: int) -> str:
        return f"shard {self.shard}, layer {layer}, step {self._lockstep.step}"
