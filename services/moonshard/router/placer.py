"""Moves experts while the cell runs, one copy of one layer at a time. Runs in the event loop's thread.

A copy goes to where there is a free slot: a copy that must give way is first taken out of the placement, and once every
attention worker sends rows by the new generation the shard may overwrite it. The shard loads, says so, and only then
does the next generation name it. Whatever is lost in between, the committed placement is served: a shard that comes
back loads what it says, and another router learns of it from those that join.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field

from moonshard.config import CellConfig
from moonshard.errors import ConfigError, FailedPrecondition, RequestError, Unavailable
from moonshard.placed import Placement
from moonshard.placement import Layer
from moonshard.placement_steps import Step, steps
from moonshard.router.members import Role, Worker, WorkerId
from moonshard.rpc.placements import newer, placement_to_proto
from moonshard.topology import Topology
from moonshard.v1 import control_pb2 as pb

logger = logging.getLogger(__name__)

Pins = dict[tuple[int, int], tuple[int, ...]]
"""By (layer, expert) the shards that must hold it."""


@dataclass(frozen=True, slots=True)
class MoveLimits:
    """slots_per_shard: copies in one layer. follow_s: for attention workers to send rows by a new generation; hold_s:
    for a shard to load a copy."""

    slots_per_shard: int
    follow_s: float
    hold_s: float

    @classmethod
    def of(cls, config: CellConfig, topology: Topology) -> "MoveLimits":
        limits = config.timeouts
        # An attention worker follows between two iterations, and one may wait for a shard.
        follow_s = limits.combine_s + limits.failover_s
        return cls(topology.experts_per_shard + config.experts.redundant_slots, follow_s, limits.load_s)


@dataclass(slots=True)
class Progress:
    """Of one placement that is applied."""

    num_layers: int
    num_layers_done: int = 0
    layer: int = 0
    num_loaded: int = 0


@dataclass(slots=True)
class _Order:
    """A Hold: to whom it was sent, and what they said."""

    message: pb.Hold
    sent: set[WorkerId] = field(default_factory=set)
    held: dict[WorkerId, pb.Held] = field(default_factory=dict)


class Placer:
    """published: called with each new placement. num_rebalances: layers that were changed; num_loaded: copies."""

    def __init__(
        self,
        topology: Topology,
        placement: Placement,
        limits: MoveLimits,
        send: Callable[[WorkerId, pb.RouterMessage], None],
    ) -> None:
        self.placement = placement
        self.pins: Pins = {}
        self.limits = limits
        self.workers: Mapping[WorkerId, Worker] = {}
        self.published: Callable[[Placement], None] = lambda _: None
        self.num_rebalances = self.num_loaded = 0
        self.loading_s = 0.0
        self._topology = topology
        self._send = send
        self._followed: dict[WorkerId, int] = {}
        self._order: _Order | None = None
        self._numbers = itertools.count(1)
        self._news = asyncio.Event()
        self._busy = False

    @property
    def load_s(self) -> float:
        """That loading a copy took on average; 0 before any was."""
        return self.loading_s / self.num_loaded if self.num_loaded else 0.0

    @property
    def movable(self) -> bool:
        return self.limits.slots_per_shard > self._topology.experts_per_shard

    def welcome(self) -> pb.Placement | None:
        """For a worker that joins; None while experts are in blocks as at the start."""
        return placement_to_proto(self.placement) if self.placement.generation else None

    def joined(self, worker_id: WorkerId, join: pb.Join) -> None:
        """Raises ConfigError when it tells of a placement that cannot be."""
        if worker_id.role is Role.ATTENTION:
            self._followed[worker_id] = -1  # it says what it follows once no older rows are on their way
        if found := newer(self.placement, join.placement):
            logger.info("%s knows placement %d, from a router before this one", worker_id, join.placement.generation)
            self._commit(found[0], found[0].moe_layers)
        self._news.set()

    def lost(self, worker_id: WorkerId) -> None:
        self._followed.pop(worker_id, None)
        if self._order:
            self._order.sent.discard(worker_id)
            self._order.held.pop(worker_id, None)
        self._news.set()

    def placed(self, worker_id: WorkerId, message: pb.Placed) -> None:
        self._followed[worker_id] = message.generation
        self._news.set()

    def held(self, worker_id: WorkerId, message: pb.Held) -> None:
        self.num_loaded += message.num_loaded
        self.loading_s += message.seconds
        if self._order and message.order == self._order.message.order:
            self._order.held[worker_id] = message
            self._news.set()

    def pin(self, layer: int, expert: int, shards: tuple[int, ...]) -> None:
        """Without shards it may be anywhere again. Raises RequestError for what does not exist."""
        for name, value, known in (
            ("pin.layer", layer, self.placement.moe_layers),
            ("pin.expert", expert, range(self._topology.num_experts)),
            *(("pin.shards", shard, range(self._topology.num_shards)) for shard in shards),
        ):
            if value not in known:
                raise RequestError(name, f"must be in {min(known)}..{max(known)}, got {value}")
        self.pins.pop((layer, expert), None)
        if shards:
            self.pins[layer, expert] = tuple(sorted(set(shards)))

    async def apply(self, layers: Mapping[int, Layer], generation: int = 0) -> AsyncGenerator[Progress, None]:
        """Make these layers so; tells after each. generation: that they were planned for, 0 is any.

        Raises RequestError for layers that cannot be, FailedPrecondition when it is not the time, Unavailable when a
        worker does not do its part in time. Experts are served throughout, and as far as it went afterwards.
        """
        ways = self._ways(layers, generation)
        self._busy, progress = True, Progress(len(ways))
        try:
            for layer, (wanted, way) in ways.items():
                for step in way:
                    await self._take(layer, step)
                    progress.num_loaded += step.expert is not None
                self._publish(layer, wanted)
                await self._all_follow()
                self.num_rebalances += 1
                progress.layer, progress.num_layers_done = layer, progress.num_layers_done + 1
                yield progress
        finally:
            self._busy, self._order = False, None

    def _ways(self, layers: Mapping[int, Layer], generation: int) -> dict[int, tuple[Layer, list[Step]]]:
        """By layer, without those that are so already."""
        if not self.movable:
            raise FailedPrecondition("experts cannot move in this cell: experts.redundant_slots is 0")
        if self._busy:
            raise FailedPrecondition("another placement is being applied")
        if generation not in (0, self.placement.generation):
            raise FailedPrecondition(f"planned for placement {generation}, it is {self.placement.generation} by now")
        try:
            wanted = self.placement.changed(generation, layers)
            now = {layer: self.placement.of_layer(layer) for layer in layers}
            changed = [layer for layer in sorted(layers) if now[layer] != wanted.of_layer(layer)]
            changes = {layer: wanted.of_layer(layer) for layer in changed}
            self._check_pins(changes)
            slots = self.limits.slots_per_shard
            return {layer: (it, steps(now[layer], it, slots)) for layer, it in changes.items()}
        except ConfigError as error:
            raise RequestError("layers", str(error)) from None

    def _check_pins(self, changes: Mapping[int, Layer]) -> None:
        for (layer, expert), shards in self.pins.items():
            if layer in changes and (absent := [it for it in shards if expert not in changes[layer][it]]):
                raise RequestError("layers", f"expert {expert} of layer {layer} is pinned to shard {absent[0]}")

    async def _take(self, layer: int, step: Step) -> None:
        self._publish(layer, step.before)
        await self._all_follow()
        if step.expert is not None:
            await self._hold(layer, step)

    async def _hold(self, layer: int, step: Step) -> None:
        """Every copy of the shard that is there, loading ones included; who comes back meanwhile is asked again."""
        hold = pb.Hold(order=next(self._numbers), layer=layer, experts=step.after[step.shard])
        self._order = order = _Order(hold)

        def done() -> bool:
            present = [it for it in self.workers if it.role is Role.EXPERT and self._shard_of(it) == step.shard]
            if not present:
                raise Unavailable(f"shard {step.shard} is not there to load expert {step.expert} of layer {layer}")
            for worker_id in [it for it in present if it not in order.sent]:
                order.sent.add(worker_id)
                self._send(worker_id, pb.RouterMessage(hold=hold))
            if failed := [it for it in order.held.values() if it.error]:
                raise Unavailable(f"shard {step.shard} cannot load expert {step.expert}: {failed[0].error}")
            return all(worker_id in order.held for worker_id in present)

        await self._until(done, self.limits.hold_s, f"shard {step.shard} has not loaded expert {step.expert}")

    async def _all_follow(self) -> None:
        def done() -> bool:
            return all(generation >= self.placement.generation for generation in self._followed.values())

        problem = f"an attention worker does not follow placement {self.placement.generation}"
        await self._until(done, self.limits.follow_s, problem)

    async def _until(self, done: Callable[[], bool], limit_s: float, problem: str) -> None:
        try:
            async with asyncio.timeout(limit_s):
                while not done():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise Unavailable(f"{problem} within {limit_s:g} s") from None

    def _shard_of(self, worker_id: WorkerId) -> int:
        return self._topology.shard_of(worker_id.rank)

    def _publish(self, layer: int, held: Layer) -> None:
        if held != self.placement.of_layer(layer):
            self._commit(self.placement.changed(self.placement.generation + 1, {layer: held}), (layer,))

    def _commit(self, placement: Placement, layers: tuple[int, ...]) -> None:
        self.placement = placement
        self.published(placement)
        message = pb.RouterMessage(placement=placement_to_proto(placement, layers))
        for worker_id in self.workers:
            self._send(worker_id, message)
