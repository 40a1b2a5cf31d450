"""What both sides of the lockstep share: the step agreement, the common sleep, and the shape of the messages.

A step begins with one small all-gather of [rows, epoch, step, place]. All buffers of the step follow from it, so
nothing is counted inside a layer. `place` is where in spec.moe_layers a rank's rows begin: 0, but for a step that a
lost rank interrupted and a new group goes on with. The step begins at the lowest place of all; before its own, a rank
has no rows. When nobody has rows, all ranks sleep at a numbered bell until one of them rings it.

Each attention rank sends all of its T rows to every shard; the shard masks what is not its own. A rank without rows
sends bare headers, which keeps the check of step and layer.
"""

from dataclasses import replace

import torch
from torch import Tensor

from moonshard.errors import ConfigError, ProtocolMismatch
from moonshard.transport import wire
from moonshard.transport.all_to_all.group import Group
from moonshard.transport.contract import WireSpec
from moonshard.transport.wire import HEADER_BYTES, Header

_ALIGNMENT = 64  # every message starts aligned, so that its parts can be viewed as float32


class Lockstep:
    """The common sequence of steps of one group. `rows`: row count of every attention worker in this step, `place`
    where the step begins. sources: the attention workers' numbers, in rank order.
    """

    def __init__(self, group: Group, spec: WireSpec) -> None:
        """Compares the WireSpec of all ranks. Raises ProtocolMismatch naming field, rank and both values.

        The group belongs to the caller's side from here on: it is closed when this fails.
        """
        self.group = group
        self.spec = replace(spec, epoch=group.epoch or spec.epoch)
        self.num_sources = group.world_size - spec.num_shards
        self.sources = group.attention or tuple(range(self.num_sources))
        self.step = -1
        self.place = 0
        self.bell = 0
        self.asleep = False
        self.rows = [0] * max(0, self.num_sources)
        self._places = list(self.rows)
        self._unchecked: list[tuple[str, Header, Tensor]] = []
        try:
            self._check_world()
            shards = [f"shard {shard}" for shard in range(spec.num_shards)]
            group.names = shards + [f"attention worker {source}" for source in self.sources]
            self._compare_specs()
        except BaseException:
            group.close()
            raise

    def agree(self, num_rows: int, place: int = 0) -> bool:
        """Begin the next step together; True when some rank has rows. Blocks until every rank is here."""
        self._check_late_headers()
        self.step += 1
        what = f"agreement on step {self.step}"
        table = self.group.all_gather([num_rows, self.spec.epoch, self.step, place], what)
        for rank, (_, epoch, step, _) in enumerate(table):
            wire.expect(f"{what}, rank {rank}", "epoch", self.spec.epoch, epoch)
            wire.expect(f"{what}, rank {rank}", "step", self.step, step)
        self.rows = [row[0] for row in table[self.spec.num_shards :]]
        self._places = [row[3] for row in table[self.spec.num_shards :]]
        self.place = min((at for rows, at in zip(self.rows, self._places, strict=True) if rows), default=0)
        self.asleep = not any(self.rows)
        return not self.asleep

    def rows_at(self, place: int) -> list[int]:
        """Row count of every attention worker in one layer."""
        return [rows if at <= place else 0 for rows, at in zip(self.rows, self._places, strict=True)]

    def sleep(self, timeout_s: float) -> bool:
        """Sleep with the others until the bell; False after timeout_s, still asleep."""
        if not self.group.sleep(self.bell, timeout_s):
            return False
        self._rise()
        return True

    def wake_all(self) -> None:
        """End the common sleep: this rank has rows."""
        self.group.ring(self.bell)
        self._rise()

    def _rise(self) -> None:
        # `wake` sets its flag first and reads `bell` then; the sleeper moves `bell` first and reads the flag then.
        self.bell += 1
        self.asleep = False

    def dispatch_header(self, source: int, layer: int, num_rows: int) -> Header:
        return wire.dispatch_header(self.spec, source, self.step, layer, num_rows)

    def reply_header(self, shard: int, layer: int, num_rows: int) -> Header:
        return wire.reply_header(self.spec, shard, self.step, layer, num_rows)

    def check(self, what: str, expected: Header, message: Tensor) -> None:
        """Check a message's header: at once on the CPU, before the next step on CUDA (a copy would stall the layer)."""
        header = message[:HEADER_BYTES]
        if header.device.type == "cpu":
            _check(what, expected, header)
        else:
            self._unchecked.append((what, expected, header.clone()))  # has never run on a CUDA device

    def _check_late_headers(self) -> None:
        for what, expected, header in self._unchecked:
            _check(what, expected, header.cpu())
        self._unchecked.clear()

    def _check_world(self) -> None:
        if self.num_sources < 1:
            problem = f"must exceed the {self.spec.num_shards} shards, got {self.group.world_size}"
            raise ConfigError("world_size", problem)

    def _compare_specs(self) -> None:
        own = wire.spec_fields(self.spec)
        for rank, data in enumerate(self.group.all_gather_bytes(wire.pack_json(own), "handshake")):
            wire.check_fields(f"handshake, rank {rank}", own, wire.parse_json(f"handshake, rank {rank}", data))


def message_bytes(header: Header) -> int:
    """Length of a message in the exchange buffers, padding included."""
    return -(-(HEADER_BYTES + header.payload_bytes) // _ALIGNMENT) * _ALIGNMENT


def pack_message(header: Header, parts: list[Tensor], device: torch.device) -> Tensor:
    """Header and contiguous tensors as one uint8 tensor of message_bytes(header)."""
    head = torch.frombuffer(bytearray(wire.pack_header(header)), dtype=torch.uint8).to(device)
    padding = message_bytes(header) - HEADER_BYTES - header.payload_bytes
    tail = torch.zeros(padding, dtype=torch.uint8, device=device)
    return torch.cat([head, *(part.contiguous().view(-1).view(torch.uint8) for part in parts), tail])


def _check(what: str, expected: Header, header: Tensor) -> None:
    try:
        found = wire.parse_header(header.numpy())
    except ProtocolMismatch as error:
        raise ProtocolMismatch(f"{what}: {error}") from None
    wire.check_header(what, expected, found)
