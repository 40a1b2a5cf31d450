"""The attention side of the lockstep transport. Not thread-safe, `wake` excepted.

Shapes: T rows of this rank's step, D hidden size, K experts per token.
"""

import threading
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moonshard.errors import ProtocolMismatch
from moonshard.transport.all_to_all.group import Group
from moonshard.transport.all_to_all.lockstep import Lockstep, message_bytes, pack_message
from moonshard.transport.contract import TransportStats, WireSpec, sum_in_shard_order
from moonshard.transport.wire import HEADER_BYTES


@dataclass(slots=True, eq=False)
class AllToAllHandle:
    """Owns the rows until combine is done; `work` and `buffer` are the exchange under way."""

    step: int
    layer: int
    x_TD: Tensor
    topk_ids_TK: Tensor
    topk_weights_TK: Tensor
    work: Any = None
    buffer: Tensor | None = None


class AllToAllDispatcher:
    """Every rank passes every layer of every step, in the order of spec.moe_layers; `idle` does it with zero rows."""

    def __init__(self, group: Group, spec: WireSpec) -> None:
        """Blocks until all ranks of the group are here. Raises ProtocolMismatch when their specs differ."""
        self.spec = spec
        self.source = group.rank - spec.num_shards
        self.stats = TransportStats.for_peers(spec.num_shards)
        self._group = group
        self._lockstep = Lockstep(group, spec)
        self._next_layer = len(spec.moe_layers)
        self._woken = threading.Event()

    def begin_step(self, num_rows: int) -> None:
        if self._lockstep.asleep:
            self._lockstep.wake_all()
        if self._lockstep.agree(num_rows):
            self._next_layer = 0

    def dispatch(self, layer: int, x_TD: Tensor, topk_ids_TK: Tensor, topk_weights_TK: Tensor) -> AllToAllHandle:
        self._check_order(layer, x_TD.shape[0])
        handle = AllToAllHandle(self._lockstep.step, layer, x_TD, topk_ids_TK, topk_weights_TK)
        if self._lockstep.asleep:
            return handle
        header = self._lockstep.dispatch_header(self.source, layer)
        parts = [topk_ids_TK.to(torch.int32), topk_weights_TK.detach().float(), x_TD.detach().to(self.spec.row_dtype)]
        message = pack_message(header, parts, self._group.device)
        nothing = [0] * self._group.world_size
        sizes = [len(message)] * self.spec.num_shards + [0] * self._lockstep.num_sources
        handle.buffer = message.repeat(self.spec.num_shards)
        handle.work = self._group.exchange(message.new_empty(0), nothing, handle.buffer, sizes)
        self._count(handle, len(message))
        return handle

    def combine(self, handle: AllToAllHandle) -> Tensor:
        num_rows, device = handle.x_TD.shape[0], handle.x_TD.device
        if handle.work is None:
            return torch.zeros(num_rows, self.spec.hidden_size, device=device)
        started = time.monotonic()
        where = f"layer {handle.layer}, step {handle.step}"
        self._group.wait(handle.work, f"dispatch, {where}")
        replies = self._receive_replies(handle, f"combine, {where}")
        self._next_layer += 1
        waited_s = time.monotonic() - started
        self.stats.wait_s = [total + waited_s for total in self.stats.wait_s]  # in lockstep all wait for the slowest
        return sum_in_shard_order([(None, y_TD) for y_TD in replies], num_rows, self.spec.hidden_size, device)

    def idle(self, timeout_s: float) -> None:
        """Join the other ranks' steps with zero rows. Returns at a step boundary only."""
        deadline = time.monotonic() + timeout_s
        while not self._woken.is_set():
            if not self._lockstep.asleep:
                self._pass_step()
            else:
                self._lockstep.sleep(deadline - time.monotonic())
            if time.monotonic() >= deadline:
                break
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()
        self._group.ring(self._lockstep.bell)

    def close(self) -> None:
        self._woken.set()
        self._group.close()

    def _pass_step(self) -> None:
        if not self._lockstep.agree(0):
            return
        self._next_layer = 0
        x_TD = torch.empty(0, self.spec.hidden_size, dtype=self.spec.row_dtype, device=self._group.device)
        ids_TK = torch.empty(0, self.spec.top_k, dtype=torch.int32, device=self._group.device)
        for layer in self.spec.moe_layers:
            self.combine(self.dispatch(layer, x_TD, ids_TK, ids_TK.float()))

    def _receive_replies(self, handle: AllToAllHandle, what: str) -> list[Tensor]:
        headers = [
            self._lockstep.reply_header(shard, self.source, handle.layer) for shard in range(self.spec.num_shards)
        ]
        size = message_bytes(headers[0])
        out = torch.empty(size * self.spec.num_shards, dtype=torch.uint8, device=self._group.device)
        sizes = [size] * self.spec.num_shards + [0] * self._lockstep.num_sources
        nothing = [0] * self._group.world_size
        self._group.wait(self._group.exchange(out, sizes, out.new_empty(0), nothing), what)
        messages = out.view(self.spec.num_shards, size).unbind()
        for shard, message in enumerate(messages):
            self._lockstep.check(f"{what}, shard {shard}", headers[shard], message)
        stop = HEADER_BYTES + headers[0].payload_bytes
        return [
            message[HEADER_BYTES:stop].view(self.spec.row_dtype).view(-1, self.spec.hidden_size) for message in messages
        ]

    def _check_order(self, layer: int, num_rows: int) -> None:
        """A layer out of order would hang the others; better to fail here."""
        if self._lockstep.asleep and not num_rows:
            return
        layers = self.spec.moe_layers
        expected = layers[self._next_layer] if self._next_layer < len(layers) else "a new step"
        if layer != expected:
            raise ProtocolMismatch(f"dispatch: layer: expected {expected}, got {layer}")
        announced = self._lockstep.rows[self.source]
        if num_rows != announced:
            raise ProtocolMismatch(f"dispatch: num_rows: expected the {announced} of begin_step, got {num_rows}")

    def _count(self, handle: AllToAllHandle, num_bytes: int) -> None:
        reply_bytes = message_bytes(self._lockstep.reply_header(0, self.source, handle.layer))
        self.stats.sent_bytes = [total + num_bytes for total in self.stats.sent_bytes]
        self.stats.received_bytes = [total + reply_bytes for total in self.stats.received_bytes]
        self.stats.num_dispatches += 1
        self.stats.num_rows += handle.x_TD.shape[0]
