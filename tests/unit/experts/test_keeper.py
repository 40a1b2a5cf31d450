"""A running shard's experts: what is asked for is loaded into free slots, what is not goes, errors are answers."""

import queue
from collections.abc import Iterator

import pytest
import torch

from moonshard.errors import CheckpointError
from moonshard.experts.keeper import Keeper
from moonshard.placed import Placement
from moonshard.transport.contract import WireSpec
from moonshard.transport.slots import Slots
from moonshard.v1 import control_pb2 as pb

SPEC = WireSpec(8, 2, 6, 2, (1, 3), torch.float32, "c0ffee", sums="expert")
LIMIT_S = 10.0


class Loader:
    """loads: (layer, expert, slot) in order."""

    def __init__(self) -> None:
        self.loads: list[tuple[int, int, int]] = []
        self.broken: set[int] = set()

    def load(self, layer: int, expert: int, slot: int) -> None:
        if expert in self.broken:
            raise CheckpointError(f"expert {expert} is not to be read")
        self.loads.append((layer, expert, slot))


class Kept:
    """Shard 1 of two, three experts and one spare slot a layer."""

    def __init__(self) -> None:
        self.slots, self.loader = Slots(SPEC, range(3, 6), 4), Loader()
        self.told: queue.Queue[pb.WorkerMessage] = queue.Queue()
        self.keeper = Keeper(1, self.slots, self.loader, self.told.put)
        self.keeper.start()

    def hold(self, layer: int, *experts: int) -> pb.Held:
        self.keeper.order(pb.Hold(order=7, layer=layer, experts=experts))
        return self.told.get(timeout=LIMIT_S).held


@pytest.fixture
def kept() -> Iterator[Kept]:
    it = Kept()
    yield it
    it.keeper.close()


def test_a_copy_comes_and_another_goes(kept: Kept) -> None:
    held = kept.hold(3, 0, 3, 4, 5)
    assert (held.order, held.error, held.num_loaded) == (7, "", 1)
    assert kept.hold(3, 0, 1, 4, 5).num_loaded == 1
    assert kept.loader.loads == [(3, 0, 3), (3, 1, 0)]  # the second where expert 3 was
    assert kept.slots.held(3) == (0, 1, 4, 5)
    assert kept.slots.of_layer(3).tolist() == [3, 0, -1, -1, 1, 2]
    assert kept.slots.held(1) == (3, 4, 5)


def test_what_cannot_be_loaded_is_told(kept: Kept) -> None:
    kept.loader.broken = {1}
    assert kept.hold(1, 1, 3, 4, 5).error == "expert 1 is not to be read"
    assert kept.hold(1, 0, 1, 2, 3, 4).error == "hold.experts: must be at most 4, got 5"
    assert kept.slots.held(1) == (3, 4, 5)


def test_a_placement_that_is_heard_of_is_caught_up_with(kept: Kept) -> None:
    placement = Placement.blocks(6, 2, (1, 3)).changed(4, {3: ((0, 1, 2, 3), (2, 3, 4, 5))})
    kept.keeper.follow(placement, {3: placement.of_layer(3)})
    assert kept.hold(3, 2, 3, 4, 5).num_loaded == 0
    assert kept.loader.loads == [(3, 2, 3)]


def test_a_shard_that_starts_loads_what_is_placed_there() -> None:
    it = Kept()
    it.keeper.close()
    placement = Placement.blocks(6, 2, (1, 3)).changed(4, {1: ((3, 4, 5), (0, 1, 2))})
    it.keeper.catch_up(placement)
    assert it.slots.held(1) == (0, 1, 2)
    assert it.slots.held(3) == (3, 4, 5)
