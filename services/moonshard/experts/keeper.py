"""Experts that come to a running shard and go: loaded into free slots by a thread of its own while rows are served."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from moonshard.errors import ConfigError, MoonshardError
from moonshard.placed import Placement
from moonshard.placement import Layer
from moonshard.transport.slots import Slots
from moonshard.v1 import control_pb2 as pb

logger = logging.getLogger(__name__)

CLOSE_S = 10.0  # one expert is loaded to its end


class SlotLoader(Protocol):
    def load(self, layer: int, expert: int, slot: int) -> None:
        """From the checkpoint into a slot that nobody reads. Raises CheckpointError."""


class Keeper:
    """For expert worker of `shard`. Orders are carried out one after the other, each answered with Held."""

    def __init__(self, shard: int, slots: Slots, loader: SlotLoader, send: Callable[[pb.WorkerMessage], None]) -> None:
        self._shard = shard
        self._slots = slots
        self._loader = loader
        self._send = send
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="expert-keeper", daemon=True)

    def catch_up(self, placement: Placement) -> None:
        """Before anything is served: load what the shard must hold by now. Raises CheckpointError, ConfigError."""
        for layer, held in zip(placement.moe_layers, placement.layers, strict=True):
            self._hold(layer, held[self._shard])

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._orders.put(None)
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    def order(self, hold: pb.Hold) -> None:
        """From any thread."""
        self._orders.put(lambda: self._obey(hold))

    def follow(self, _: Placement, layers: Mapping[int, Layer]) -> None:
        """What the router publishes is held already, unless another router had it loaded: then it is loaded now."""
        self._orders.put(lambda: self._mend(layers))

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            order()

    def _obey(self, hold: pb.Hold) -> None:
        started, error, num_loaded = time.monotonic(), "", 0
        try:
            num_loaded = self._hold(hold.layer, hold.experts)
        except MoonshardError as problem:
            logger.error("cannot hold what it should in layer %d: %s", hold.layer, problem)
            error = str(problem)
        seconds = time.monotonic() - started
        held = pb.Held(order=hold.order, error=error, seconds=seconds, num_loaded=num_loaded)
        self._send(pb.WorkerMessage(held=held))

    def _mend(self, layers: Mapping[int, Layer]) -> None:
        try:
            for layer, held in layers.items():
                self._load(layer, set(held[self._shard]) - set(self._slots.held(layer)))
        except MoonshardError as problem:
            logger.error("cannot hold what the placement says: %s", problem)

    def _hold(self, layer: int, experts: Iterable[int]) -> int:
        """Exactly these; how many were loaded."""
        wanted, held = set(experts), set(self._slots.held(layer))
        if len(wanted) > self._slots.num_slots:
            raise ConfigError("hold.experts", f"must be at most {self._slots.num_slots}, got {len(wanted)}")
        for expert in held - wanted:
            self._slots.of_layer(layer)[expert] = -1
        self._load(layer, wanted - held)
        return len(wanted - held)

    def _load(self, layer: int, experts: Iterable[int]) -> None:
        for expert in sorted(experts):
            if not (free := self._slots.free(layer)):
                raise ConfigError("hold.experts", f"layer {layer} has no free slot for expert {expert}")
            self._loader.load(layer, expert, free[0])
            # From here on rows find it.
            self._slots.of_layer(layer)[expert] = free[0]
