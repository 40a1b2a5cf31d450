"""How copies move: nothing is overwritten before everybody has followed, nothing is published before it is loaded."""

import asyncio

import pytest

from moonshard.errors import FailedPrecondition, RequestError, Unavailable
from moonshard.placed import Placement
from moonshard.placement import Layer
from moonshard.router.members import Role, Worker, WorkerId
from moonshard.router.placer import MoveLimits, Placer
from moonshard.rpc.placements import layers_from_proto, placement_to_proto
from moonshard.topology import Topology
from moonshard.v1 import control_pb2 as pb

LIMIT_S = 10.0
SWAPPED: dict[int, Layer] = {1: ((0, 2), (1, 3))}


class Workers:
    """Two shards of two experts and a spare slot, one of them twice, and two attention workers; all obey at once.

    log: what they were told, in order. slow: workers that do not answer.
    """

    def __init__(self, spare: int = 1) -> None:
        self.log: list[str] = []
        self.slow: set[str] = set()
        topology = Topology(4, 2, 2, 2)
        limits = MoveLimits(2 + spare, 0.3, 0.3)
        self.placer = Placer(topology, Placement.blocks(4, 2, (1, 5)), limits, self.receive)
        self.ids = [WorkerId(Role.EXPERT, rank) for rank in (0, 1, 3)] + [WorkerId(Role.ATTENTION, i) for i in (0, 1)]
        for worker_id in self.ids:
            self.join(worker_id)

    def join(self, worker_id: WorkerId, join: pb.Join | None = None) -> None:
        self.placer.joined(worker_id, join or pb.Join())
        worker = Worker(worker_id, 1, "here", "", range(0), "")
        self.placer.workers = {**self.placer.workers, worker_id: worker}
        if worker_id.role is Role.ATTENTION:
            self.placer.placed(worker_id, pb.Placed(generation=self.placer.placement.generation))

    def lose(self, worker_id: WorkerId) -> None:
        self.placer.lost(worker_id)
        self.placer.workers = {key: it for key, it in self.placer.workers.items() if key != worker_id}

    def receive(self, worker_id: WorkerId, message: pb.RouterMessage) -> None:
        if message.HasField("hold"):
            self.log.append(f"{worker_id} holds {list(message.hold.experts)} of {message.hold.layer}")
        elif worker_id.role is Role.ATTENTION:
            [(layer, placed)] = layers_from_proto(message.placement.layers).items()
            self.log.append(f"{worker_id} follows {message.placement.generation}: {placed} in {layer}")
        if str(worker_id) not in self.slow:
            asyncio.get_running_loop().call_soon(self.answer, worker_id, message)

    def answer(self, worker_id: WorkerId, message: pb.RouterMessage) -> None:
        if message.HasField("hold"):
            self.placer.held(worker_id, pb.Held(order=message.hold.order, seconds=0.5, num_loaded=1))
        elif worker_id.role is Role.ATTENTION:
            self.placer.placed(worker_id, pb.Placed(generation=message.placement.generation))

    async def apply(self, layers: dict[int, Layer], generation: int = 0) -> list[int]:
        """Layers done, one after the other."""
        async with asyncio.timeout(LIMIT_S):
            return [it.layer async for it in self.placer.apply(layers, generation)]


def test_a_swap_step_by_step() -> None:
    it = Workers()
    assert asyncio.run(it.apply({**SWAPPED, 5: ((0, 1), (2, 3))})) == [1]
    assert it.log == [
        "expert-0 holds [0, 1, 2] of 1",
        "attention-0 follows 1: ((0, 1, 2), (2, 3)) in 1",
        "attention-1 follows 1: ((0, 1, 2), (2, 3)) in 1",
        "expert-1 holds [1, 2, 3] of 1",
        "expert-3 holds [1, 2, 3] of 1",  # the second copy of that shard
        "attention-0 follows 2: ((0, 2), (1, 3)) in 1",
        "attention-1 follows 2: ((0, 2), (1, 3)) in 1",
    ]
    assert it.placer.placement.of_layer(1) == ((0, 2), (1, 3))
    assert (it.placer.num_rebalances, it.placer.num_loaded, it.placer.load_s) == (1, 3, 0.5)


@pytest.mark.parametrize(
    ("slow", "problem", "num_told"),
    [
        ("expert-0", "shard 0 has not loaded expert 2 within 0.3 s", 1),  # and nobody is sent there
        ("attention-1", "an attention worker does not follow placement 1 within 0.3 s", 3),  # and nothing goes
    ],
)
def test_who_does_not_do_his_part_holds_it_up(slow: str, problem: str, num_told: int) -> None:
    it = Workers()
    it.slow = {slow}

    async def run() -> list[int]:
        with pytest.raises(Unavailable, match=problem):
            await it.apply(SWAPPED)
        assert len(it.log) == num_told
        it.slow.clear()
        for rank in (0, 1):
            it.placer.placed(WorkerId(Role.ATTENTION, rank), pb.Placed(generation=it.placer.placement.generation))
        return await it.apply(SWAPPED)

    assert asyncio.run(run()) == [1]
    assert it.placer.placement.of_layer(1) == ((0, 2), (1, 3))


def test_a_shard_that_comes_back_meanwhile_is_asked_again() -> None:
    it = Workers()
    it.slow = {"expert-3"}

    async def run() -> list[int]:
        apply = asyncio.create_task(it.apply({1: ((0, 1), (0, 2, 3))}))
        while not any("expert-3 holds" in line for line in it.log):
            await asyncio.sleep(0)
        it.lose(WorkerId(Role.EXPERT, 3))
        it.join(WorkerId(Role.EXPERT, 3))
        it.slow.clear()
        return await apply

    assert asyncio.run(run()) == [1]
    assert it.log.count("expert-3 holds [0, 2, 3] of 1") == 2


def test_a_shard_that_is_not_there_loads_nothing() -> None:
    it = Workers()
    it.lose(WorkerId(Role.EXPERT, 0))
    with pytest.raises(Unavailable, match="shard 0 is not there to load expert 2 of layer 1"):
        asyncio.run(it.apply({1: ((0, 1, 2), (2, 3))}))


def test_another_router_learns_from_those_that_join() -> None:
    it, known = Workers(), Placement.blocks(4, 2, (1, 5)).changed(9, {5: ((0, 1, 2), (2, 3))})

    async def run() -> None:
        it.join(WorkerId(Role.EXPERT, 2), pb.Join(placement=placement_to_proto(known)))

    it.receive = lambda *_: None  # type: ignore[method-assign]
    it.placer._send = it.receive
    asyncio.run(run())
    assert it.placer.placement.layers == known.layers
    welcome = it.placer.welcome()
    assert welcome is not None
    assert welcome.generation == 9


def test_when_it_is_not_the_time() -> None:
    with pytest.raises(FailedPrecondition, match="experts cannot move in this cell"):
        asyncio.run(Workers(spare=0).apply(SWAPPED))
    with pytest.raises(FailedPrecondition, match="planned for placement 3, it is 0 by now"):
        asyncio.run(Workers().apply(SWAPPED, generation=3))

    async def twice(it: Workers) -> None:
        await asyncio.gather(it.apply(SWAPPED), it.apply(SWAPPED))

    with pytest.raises(FailedPrecondition, match="another placement is being applied"):
        asyncio.run(twice(Workers()))


@pytest.mark.parametrize(
    ("pin", "problem"),
    [
        ((2, 0, (0,)), "pin.layer: must be in 1..5, got 2"),
        ((1, 4, (0,)), "pin.expert: must be in 0..3, got 4"),
        ((1, 3, (2,)), "pin.shards: must be in 0..1, got 2"),
    ],
)
def test_pins_of_what_does_not_exist(pin: tuple[int, int, tuple[int, ...]], problem: str) -> None:
    with pytest.raises(RequestError) as caught:
        Workers().placer.pin(*pin)
    assert str(caught.value) == problem


def test_a_pin_holds_until_it_is_taken_away() -> None:
    it = Workers()
    it.placer.pin(1, 1, (0,))
    with pytest.raises(RequestError, match="layers: expert 1 of layer 1 is pinned to shard 0"):
        asyncio.run(it.apply(SWAPPED))
    it.placer.pin(1, 1, ())
    assert asyncio.run(it.apply(SWAPPED)) == [1]
