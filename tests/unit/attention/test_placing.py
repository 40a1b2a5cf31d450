"""An attention worker follows placements: at once while it has no dispatcher, between two steps once it has."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import torch

from moonshard.attention.placing import FollowedPlacement
from moonshard.placed import Placement
from moonshard.placement_news import PlacementNews
from moonshard.rpc.placements import placement_to_proto
from moonshard.transport.contract import WireSpec
from moonshard.transport.routing_table import RoutingTable
from moonshard.v1 import control_pb2 as pb
from moonshard.worker import Worker

SPEC = WireSpec(8, 2, 4, 2, (1, 3), torch.float32, "c0ffee", sums="expert")
BLOCKS = Placement.blocks(4, 2, (1, 3))
FIRST = BLOCKS.changed(1, {3: ((0, 1, 2), (2, 3))})
SECOND = FIRST.changed(2, {3: ((0, 2), (1, 3))})


class Router:
    """What the worker says to it."""

    def __init__(self) -> None:
        self.news, self.placed = PlacementNews(BLOCKS), list[int]()
        worker = SimpleNamespace(spec=SPEC, inbox=SimpleNamespace(placements=self.news), link=self)
        self.worker = cast(Worker, worker)

    def send(self, message: pb.WorkerMessage) -> None:
        self.placed.append(message.placed.generation)


class Dispatcher:
    """tables: what it was told; takes the last when asked to."""

    def __init__(self) -> None:
        self.tables: list[tuple[RoutingTable, Callable[[], None]]] = []

    def update_table(self, table: RoutingTable, adopted: Callable[[], None]) -> None:
        self.tables.append((table, adopted))

    def step(self) -> RoutingTable:
        for _, adopted in self.tables:
            adopted()
        return self.tables[-1][0]


def test_it_says_what_it_follows_when_it_does() -> None:
    router, dispatcher = Router(), Dispatcher()
    followed = FollowedPlacement(router.worker)
    router.news.tell(placement_to_proto(FIRST, (3,)))
    assert router.placed == [0, 1]
    followed.attach(cast(Any, dispatcher))
    router.news.tell(placement_to_proto(SECOND, (3,)))
    router.news.tell(placement_to_proto(FIRST))  # late, from another router
    assert router.placed == [0, 1]
    table = dispatcher.step()
    assert router.placed == [0, 1, 2]
    assert table.generation == 2
    assert table.copies_LE.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert table.shards_LEC[:, :, 0].tolist() == [[0, 0, 1, 1], [0, 1, 0, 1]]
    assert followed.table is table


def test_a_worker_that_joins_late_starts_with_what_there_is() -> None:
    router = Router()
    router.news.tell(placement_to_proto(SECOND))
    assert FollowedPlacement(router.worker).table.shards_LEC[1, :, 0].tolist() == [0, 1, 0, 1]
    assert router.placed == [2]
    whole = router.news.whole()
    assert whole is not None
    assert whole.generation == 2


def test_holds_wait_for_somebody_who_obeys() -> None:
    news, obeyed = PlacementNews(BLOCKS), list[int]()
    news.order(pb.Hold(order=1))
    news.obey(lambda hold: obeyed.append(hold.order))
    news.order(pb.Hold(order=2))
    assert obeyed == [1, 2]
