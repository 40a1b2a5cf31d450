"""The attention side of the lockstep transport. Not thread-safe, `wake` excepted.

Shapes: T rows of this rank's step, D hidden size, K experts per token.
"""

import math
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moonshard.errors import PeerLost, ProtocolMismatch, TransportError
from moonshard.transport.all_to_all.group import Group
from moonshard.transport.all_to_all.lockstep import Lockstep, message_bytes, pack_message
from moonshard.transport.all_to_all.meeting import Groups, OneGroup
from moonshard.transport.contract import TransportStats, WireSpec, sum_in_shard_order
from moonshard.transport.links.recovery import Recovery
from moonshard.transport.wire import HEADER_BYTES


@dataclass(slots=True, eq=False)
class AllToAllHandle:
    """Owns the rows until combine is done, so that they can be sent again in another group.

    `work` and `buffer` are the exchange under way, `failure` why there is none. asked_again: a group was lost.
    doubted: by shard, the instance whose sums were not finite, so that they were asked for anew.
    """

    step: int
    layer: int
    x_TD: Tensor
    topk_ids_TK: Tensor
    topk_weights_TK: Tensor
    work: Any = None
    buffer: Tensor | None = None
    failure: TransportError | None = None
    asked_again: bool = False
    doubted: dict[int, str] = field(default_factory=dict)


class AllToAllDispatcher:
    """Every rank passes every layer of every step, in the order of spec.moe_layers; `idle` does it with zero rows.

    When the group is lost and another one comes, the step that was interrupted goes on there, with the layer whose sums
    are missing. recovery: what became of it, in numbers.
    """

    def __init__(self, groups: Groups | Group, spec: WireSpec, wait_s: float = 0.0) -> None:
        """Blocks until all ranks of the first group are here, at most wait_s for its roster.

        Raises ProtocolMismatch when their specs differ, PeerLost when there is no group.
        """
        self.spec = spec
        self.stats = TransportStats.for_peers(spec.num_shards)
        self.recovery = Recovery()
        self._groups = OneGroup(groups) if isinstance(groups, Group) else groups
        self._lockstep: Lockstep | None = None
        self._num_steps = -1
        self._num_rows = 0
        self._next_layer = len(spec.moe_layers)  # of our step, in spec.moe_layers
        self._place = 0  # of all ranks' step
        self._woken = threading.Event()
        self._join_by(time.monotonic() + wait_s)

    def begin_step(self, num_rows: int) -> None:
        self._num_steps += 1
        self._num_rows = num_rows
        self._next_layer = 0
        self._begin(0, time.monotonic() + self._groups.recover_s)

    def dispatch(self, layer: int, x_TD: Tensor, topk_ids_TK: Tensor, topk_weights_TK: Tensor) -> AllToAllHandle:
        self._check_order(layer, x_TD.shape[0])
        handle = AllToAllHandle(self._num_steps, layer, x_TD, topk_ids_TK, topk_weights_TK)
        self.stats.num_dispatches += 1
        self.stats.num_rows += x_TD.shape[0]
        try:
            self._send(handle)
        except TransportError as error:
            handle.failure = error
        return handle

    def combine(self, handle: AllToAllHandle) -> Tensor:
        started = time.monotonic()
        while True:
            if handle.failure:
                handle.work, handle.asked_again = None, True
                self._lose(handle.failure)
            try:
                if handle.failure:
                    self._send_again(handle, started + self._groups.recover_s)
                y_TD = self._sums(handle)
            except TransportError as error:
                handle.failure = error
                continue
            self._next_layer += 1
            waited_s = time.monotonic() - started
            # In lockstep all wait for the slowest.
            self.stats.wait_s = [total + waited_s for total in self.stats.wait_s]
            if handle.asked_again:
                self.recovery.paused(waited_s)
            return y_TD

    def idle(self, timeout_s: float) -> None:
        """Join the other ranks' steps with zero rows. Returns at a step boundary only."""
        deadline = time.monotonic() + timeout_s
        while not self._woken.is_set():
            try:
                self._pass_time(deadline)
            except TransportError as error:
                self._lose(error)
            if time.monotonic() >= deadline:
                break
        self._woken.clear()

    def wake(self) -> None:
        # The flag first, then who is to be woken: `idle` takes its lockstep first and reads the flag then.
        self._woken.set()
        self._groups.nudge()
        if lockstep := self._lockstep:
            lockstep.group.ring(lockstep.bell)

    def close(self) -> None:
        self._woken.set()
        self._lockstep = None
        self._groups.close()

    def _pass_time(self, deadline: float) -> None:
        lockstep = self._lockstep or self._join(deadline)
        if lockstep is None:
            return
        if lockstep.asleep:
            lockstep.sleep(deadline - time.monotonic())
        elif lockstep.agree(0):
            self._place = lockstep.place
            self._pass_layers(lockstep, len(self.spec.moe_layers))

    def _begin(self, place: int, deadline: float) -> None:
        """Agree on a step in which our rows begin at `place`, in another group if need be."""
        while True:
            lockstep = self._lockstep or self._join_by(deadline)
            try:
                if lockstep.asleep:
                    lockstep.wake_all()
                self._place = lockstep.place if lockstep.agree(self._num_rows, place) else place
                return
            except TransportError as error:
                self._lose(error)

    def _join_by(self, deadline: float) -> Lockstep:
        while True:
            if lockstep := self._join(deadline):
                return lockstep
            if time.monotonic() >= deadline:
                raise PeerLost("no group of all ranks came in time")

    def _join(self, deadline: float) -> Lockstep | None:
        """None when no group comes before the deadline."""
        group = self._groups.next(max(0.0, deadline - time.monotonic()))
        if group is None:
            return None
        try:
            self._lockstep = Lockstep(group, self.spec)
        except ProtocolMismatch:
            raise
        except TransportError as error:
            self._groups.lose(group, error)
        return self._lockstep

    def _lose(self, error: TransportError) -> None:
        """Leave the group. Raises `error` when it is nothing that another group could mend."""
        lockstep, self._lockstep = self._lockstep, None
        if lockstep is None:
            raise error
        if isinstance(error, ProtocolMismatch):
            self._groups.close()
            raise error
        self._groups.lose(lockstep.group, error)

    def _send(self, handle: AllToAllHandle) -> None:
        lockstep, place = self._present(), self.spec.moe_layers.index(handle.layer)
        if lockstep.asleep or place < lockstep.place:
            return  # we have no rows, and in this layer nobody has
        self._pass_layers(lockstep, place)
        header = lockstep.dispatch_header(self._source(lockstep), handle.layer, handle.x_TD.shape[0])
        parts = [
            handle.topk_ids_TK.to(torch.int32),
            handle.topk_weights_TK.detach().float(),
            handle.x_TD.detach().to(self.spec.row_dtype),
        ]
        message = pack_message(header, parts, lockstep.group.device)
        nothing = [0] * lockstep.group.world_size
        sizes = [len(message)] * self.spec.num_shards + [0] * lockstep.num_sources
        handle.buffer = message.repeat(self.spec.num_shards)
        handle.work = lockstep.group.exchange(message.new_empty(0), nothing, handle.buffer, sizes)
        self.stats.sent_bytes = [total + len(message) for total in self.stats.sent_bytes]

    def _send_again(self, handle: AllToAllHandle, deadline: float) -> None:
        """In a step of the next group that begins with this layer, or before it where others are behind."""
        handle.failure = handle.work = handle.buffer = None
        self.recovery.num_redispatches += 1
        self._begin(self.spec.moe_layers.index(handle.layer), deadline)
        self._send(handle)

    def _sums(self, handle: AllToAllHandle) -> Tensor:
        num_rows, device = handle.x_TD.shape[0], handle.x_TD.device
        if handle.work is None:
            return torch.zeros(num_rows, self.spec.hidden_size, device=device)
        lockstep = self._present()
        where = f"layer {handle.layer}, step {handle.step}"
        lockstep.group.wait(handle.work, f"dispatch, {where}")
        replies = self._receive_replies(lockstep, handle, f"combine, {where}")
        self._place += 1
        y_TD = sum_in_shard_order([(None, y_TD) for y_TD in replies], num_rows, self.spec.hidden_size, device)
        if self._groups.recover_s and y_TD.is_cpu and not math.isfinite(y_TD.sum().item()):
            self._doubt(lockstep, handle, replies)
        return y_TD

    def _doubt(self, lockstep: Lockstep, handle: AllToAllHandle, replies: list[Tensor]) -> None:
        """Raise PeerLost for sums of finite rows that are not finite, unless two processes say the same."""
        if self.recovery.trusts_everyone or not handle.x_TD.isfinite().all():
            return
        for shard, sums in enumerate(replies):
            if sums.isfinite().all():
                continue
            instance, what = lockstep.group.instances[shard], f"shard {shard}, layer {handle.layer}"
            if handle.doubted.setdefault(shard, instance) != instance:
                self.recovery.believe(f"{what}: sums are not finite twice over")
                return
            self._accuse(shard, f"{what}: sums of finite rows are not finite")

    def _accuse(self, shard: int, problem: str) -> None:
        """Whoever commits the membership sends it away, and a group without it begins."""
        self.recovery.suspect(shard, 0, problem, is_wrong=True)
        raise PeerLost(problem)

    def _pass_layers(self, lockstep: Lockstep, stop: int) -> None:
        """Layers in which other ranks have rows and we do not."""
        x_TD = torch.empty(0, self.spec.hidden_size, dtype=self.spec.row_dtype, device=lockstep.group.device)
        ids_TK = torch.empty(0, self.spec.top_k, dtype=torch.int32, device=lockstep.group.device)
        while self._place < stop:
            layer = self.spec.moe_layers[self._place]
            handle = AllToAllHandle(self._num_steps, layer, x_TD, ids_TK, ids_TK.float())
            self._send(handle)
            self._sums(handle)

    def _receive_replies(self, lockstep: Lockstep, handle: AllToAllHandle, what: str) -> list[Tensor]:
        num_rows, num_shards = handle.x_TD.shape[0], self.spec.num_shards
        headers = [lockstep.reply_header(shard, handle.layer, num_rows) for shard in range(num_shards)]
        size = message_bytes(headers[0])
        out = torch.empty(size * num_shards, dtype=torch.uint8, device=lockstep.group.device)
        sizes = [size] * num_shards + [0] * lockstep.num_sources
        nothing = [0] * lockstep.group.world_size
        lockstep.group.wait(lockstep.group.exchange(out, sizes, out.new_empty(0), nothing), what)
        self.stats.received_bytes = [total + size for total in self.stats.received_bytes]
        messages = out.view(num_shards, size).unbind()
        for shard, message in enumerate(messages):
            try:
                lockstep.check(f"{what}, shard {shard}", headers[shard], message)
            except ProtocolMismatch as error:
                if not self._groups.recover_s:
                    raise
                self._accuse(shard, str(error))
        stop = HEADER_BYTES + headers[0].payload_bytes
        return [
            message[HEADER_BYTES:stop].view(self.spec.row_dtype).view(-1, self.spec.hidden_size) for message in messages
        ]

    def _present(self) -> Lockstep:
        if self._lockstep is None:
            raise PeerLost("the group is lost")
        return self._lockstep

    def _source(self, lockstep: Lockstep) -> int:
        """Our number among the attention workers."""
        return lockstep.sources[lockstep.group.rank - self.spec.num_shards]

    def _check_order(self, layer: int, num_rows: int) -> None:
        """A layer out of order would hang the others; better to fail here."""
        if self._lockstep and self._lockstep.asleep and not num_rows:
            return
        layers, place = self.spec.moe_layers, self._next_layer
        expected = layers[place] if place < len(layers) else "a new step"
        if layer != expected:
            raise ProtocolMismatch(f"dispatch: layer: expected {expected}, got {layer}")
        if num_rows != self._num_rows:
            raise ProtocolMismatch(f"dispatch: num_rows: expected the {self._num_rows} of begin_step, got {num_rows}")
