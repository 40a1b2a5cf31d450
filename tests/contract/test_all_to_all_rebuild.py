"""Groups of all_to_all that lose a rank: the next one goes on with the layer that was interrupted, with the same bits.

Shards are processes that really die or stop. The test is their router: it commits rosters and hears of lost groups.
"""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import torch

from moonshard.errors import PeerLost, TransportError
from moonshard.transport.all_to_all import AllToAllDispatcher, AllToAllEndpoint, Meeting, Roster, Seat
from moonshard.transport.contract import WireSpec
from tests.contract.transport_cluster import Worker, compute, expected, free_port, make_rows, make_spec, same_bits

NUM_SHARDS = 3
LIMIT_S = 20.0
JOIN_S = 5.0


def seat(address: str, number: int, is_shard: bool, exchange_s: float) -> Seat:
    return Seat(address, NUM_SHARDS, number, is_shard, torch.device("cpu"), JOIN_S, exchange_s, LIMIT_S)


def run_shard(spec: WireSpec, address: str, shard: int, orders: Any, exchange_s: float) -> None:
    """A shard in a process of its own. orders: a connection on which rosters and "lie" come, lost epochs go."""
    torch.set_num_threads(1)
    meeting = Meeting(seat(address, shard, True, exchange_s), lambda epoch, reason: orders.send((epoch, reason)))
    lies = threading.Event()

    def obey() -> None:
        while True:
            order = orders.recv()
            lies.set() if order == "lie" else meeting.tell(order)

    threading.Thread(target=obey, daemon=True).start()
    orders.send("ready")
    endpoint = AllToAllEndpoint(meeting, spec, shard, 2)
    while True:
        if batch := endpoint.receive(timeout_s=0.2):
            y_RD = compute(shard, batch.layer, batch.x_RD, batch.topk_ids_RK, batch.topk_weights_RK)
            endpoint.reply(batch, y_RD * float("nan") if lies.is_set() else y_RD)


class Cell:
    """Shards in processes, attention workers in threads of the test; `commit` tells all of them the next roster."""

    def __init__(self, exchange_s: float = LIMIT_S) -> None:
        self.spec = make_spec(num_shards=NUM_SHARDS, num_experts=36)
        self.epoch = 0
        self.lost: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self._address = f"127.0.0.1:{free_port()}"
        self._exchange_s = exchange_s
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["torch", "moonshard.transport.all_to_all"])
        self.meetings: dict[int, Meeting] = {}
        self.shards: dict[int, Any] = {}
        self._orders: dict[int, Any] = {}
        for shard in range(NUM_SHARDS):
            self._start(shard)
        self._await_ready(*self.shards)

    def _await_ready(self, *shards: int) -> None:
        """Shard 0 listens before anybody is told to meet there."""
        for shard in shards:
            assert self._orders[shard].poll(LIMIT_S)
            assert self._orders[shard].recv() == "ready"

    def _start(self, shard: int) -> None:
        ours, theirs = self._context.Pipe()
        arguments = (self.spec, self._address, shard, theirs, self._exchange_s)
        self.shards[shard] = self._context.Process(target=run_shard, args=arguments, daemon=True)
        self.shards[shard].start()
        self._orders[shard] = ours

    def kill(self, shard: int) -> None:
        self.shards[shard].kill()
        self.shards[shard].join(10)

    def lie(self, shard: int) -> None:
        self._orders[shard].send("lie")

    def commit(self, *attention: int) -> None:
        self.epoch += 1
        for shard, orders in self._orders.items():
            if self.shards[shard].is_alive():
                orders.send(Roster(self.epoch, attention))
        for meeting in self.meetings.values():
            meeting.tell(Roster(self.epoch, attention))

    def replace(self, shard: int, *attention: int) -> None:
        """As a router does when a rank is lost and comes back."""
        self.commit()
        self._start(shard)
        self._await_ready(shard)
        self.commit(*attention)

    def meeting(self, number: int) -> Meeting:
        report: Callable[[int, str], None] = lambda epoch, reason: self.lost.put((epoch, reason))  # noqa: E731
        self.meetings[number] = Meeting(seat(self._address, number, False, self._exchange_s), report)
        return self.meetings[number]

    def close(self) -> None:
        for shard in self.shards:
            self.shards[shard].kill()
            self.shards[shard].join(10)


@pytest.fixture
def make_cell() -> Iterator[Callable[..., Cell]]:
    cells: list[Cell] = []

    def make(*arguments: float) -> Cell:
        cells.append(Cell(*arguments))
        return cells[-1]

    yield make
    for cell in cells:
        cell.close()
    for thread in threading.enumerate():
        if thread.name.startswith("group-"):
            thread.join(LIMIT_S)  # an interpreter that ends meanwhile would take torch's threads with it


def join(cell: Cell, *numbers: int) -> list[AllToAllDispatcher]:
    meetings = [cell.meeting(number) for number in numbers]
    cell.commit(*numbers)
    makers = [Worker(lambda m=m: AllToAllDispatcher(m, cell.spec, LIMIT_S)) for m in meetings]
    return [maker.result() for maker in makers]


def layer_of(dispatcher: AllToAllDispatcher, cell: Cell, layer: int, num_rows: int) -> None:
    rows = make_rows(cell.spec, num_rows)
    y_TD = dispatcher.combine(dispatcher.dispatch(layer, *rows))
    assert same_bits(y_TD, expected(cell.spec, layer, rows))


def step(dispatcher: AllToAllDispatcher, cell: Cell, num_rows: int = 3) -> None:
    dispatcher.begin_step(num_rows)
    for layer in cell.spec.moe_layers:
        layer_of(dispatcher, cell, layer, num_rows)


class Companion:
    """An attention worker that steps, then idles, until the end: in lockstep nobody gets on without the others."""

    def __init__(self, dispatcher: AllToAllDispatcher, cell: Cell) -> None:
        self.num_steps = 0
        self._dispatcher, self._cell = dispatcher, cell
        self._over = threading.Event()
        self._worker = Worker(self._run)

    def end(self, number: int) -> None:
        self._over.set()
        self._cell.meetings[number].end("the test is over")
        self._worker.result()
        self._dispatcher.close()

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                step(self._dispatcher, self._cell, 5)
                self.num_steps += 1
        except PeerLost:
            if not self._over.is_set():
                raise


@pytest.mark.parametrize("victim", [0, 2], ids=["the shard with the store", "another shard"])
@pytest.mark.parametrize("moment", ["before a step", "between dispatch and combine", "between layers"])
def test_a_step_goes_on_in_the_next_group(victim: int, moment: str, make_cell: Callable[..., Cell]) -> None:
    cell = make_cell()
    [dispatcher] = join(cell, 0)
    first, *rest = cell.spec.moe_layers
    rows = make_rows(cell.spec, 4)

    def die() -> None:
        cell.kill(victim)
        threading.Thread(target=cell.replace, args=(victim, 0), daemon=True).start()

    with closing(dispatcher):
        step(dispatcher, cell)
        if moment == "before a step":
            die()
        dispatcher.begin_step(4)
        handle = dispatcher.dispatch(first, *rows)
        if moment == "between dispatch and combine":
            die()
        assert same_bits(dispatcher.combine(handle), expected(cell.spec, first, rows))
        if moment == "between layers":
            die()
        for layer in rest:
            layer_of(dispatcher, cell, layer, 4)
        step(dispatcher, cell)
    assert cell.epoch == 3


def test_ranks_that_were_interrupted_in_different_layers_meet_again(
    make_cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has the sums of the first layer, the other has not: its rows go there first."""
    cell = make_cell()
    ahead, behind = join(cell, 0, 1)
    receive = behind._receive_replies

    def lose(*arguments: Any) -> Any:
        receive(*arguments)
        monkeypatch.undo()
        cell.kill(1)
        threading.Thread(target=cell.replace, args=(1, 0, 1), daemon=True).start()
        raise PeerLost("what came is lost")

    monkeypatch.setattr(behind, "_receive_replies", lose)
    companion = Companion(ahead, cell)
    with closing(behind):
        step(behind, cell, 2)
        step(behind, cell, 1)
        assert cell.epoch == 3
        companion.end(0)


def test_an_attention_worker_that_is_lost_is_done_without(make_cell: Callable[..., Cell]) -> None:
    cell = make_cell()
    stays, leaves = join(cell, 0, 1)
    companion = Companion(stays, cell)
    step(leaves, cell)
    leaves.close()
    cell.commit(0)
    before, deadline = companion.num_steps, time.monotonic() + LIMIT_S
    while companion.num_steps < before + 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    meeting = cell.meeting(1)
    cell.commit(0, 1)
    with closing(AllToAllDispatcher(meeting, cell.spec, LIMIT_S)) as back:
        step(back, cell)
        companion.end(0)


def test_a_rank_that_stands_still_is_told_within_the_limit_and_comes_back(make_cell: Callable[..., Cell]) -> None:
    cell = make_cell(1.0)
    [dispatcher] = join(cell, 0)
    with closing(dispatcher):
        step(dispatcher, cell)
        os.kill(cell.shards[1].pid, signal.SIGSTOP)
        running = Worker(lambda: step(dispatcher, cell))
        epoch, reason = cell.lost.get(timeout=5)
        assert (epoch, "no answer within 1 s" in reason) == (1, True), reason
        cell.commit(0)
        os.kill(cell.shards[1].pid, signal.SIGCONT)
        running.result()
        step(dispatcher, cell)


def test_a_newer_roster_ends_the_wait_for_a_rank_that_does_not_come(make_cell: Callable[..., Cell]) -> None:
    cell = make_cell()
    [dispatcher] = join(cell, 0)
    with closing(dispatcher):
        cell.commit(0, 1)
        running = Worker(lambda: step(dispatcher, cell))
        time.sleep(0.3)
        assert running.is_alive(), "attention worker 1 does not exist"
        cell.commit(0)
        running.result(5.0)


def test_sums_that_are_not_finite_are_asked_for_anew(make_cell: Callable[..., Cell]) -> None:
    cell = make_cell()
    [dispatcher] = join(cell, 0)
    accused: queue.SimpleQueue[Any] = queue.SimpleQueue()
    dispatcher.recovery.tell = accused.put
    with closing(dispatcher):
        step(dispatcher, cell)
        cell.lie(2)
        running = Worker(lambda: step(dispatcher, cell))
        suspicion = accused.get(timeout=5)
        assert (suspicion.shard, suspicion.is_wrong) == (2, True)
        cell.kill(2)
        cell.replace(2, 0)
        running.result()


def test_the_order_to_stop_ends_every_wait(make_cell: Callable[..., Cell]) -> None:
    cell = make_cell()
    [dispatcher] = join(cell, 0)
    cell.commit()
    running = Worker(lambda: step(dispatcher, cell))
    threading.Timer(0.2, cell.meetings[0].end, ["the worker stops"]).start()
    with closing(dispatcher), pytest.raises(PeerLost, match="the worker stops"):
        running.result(5.0)


def test_a_group_that_nobody_replaces_is_the_end() -> None:
    given = seat(f"127.0.0.1:{free_port()}", 0, False, 1.0)
    alone = Seat(*(getattr(given, name) for name in Seat.__slots__[:-1]), recover_s=0.0)
    meeting = Meeting(alone, lambda *_: None)
    meeting.tell(Roster(1, (0,)))
    with closing(meeting), pytest.raises(TransportError):
        AllToAllDispatcher(meeting, make_spec(num_shards=NUM_SHARDS, num_experts=36), 0.1)
