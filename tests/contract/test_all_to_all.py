"""The lockstep transport: agreement, sleep and wake, mismatches, dead and silent ranks in processes of their own."""

import gc
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

from moonshard.errors import ConfigError, PeerLost, ProtocolMismatch, TransportError, TransportTimeout
from moonshard.transport.all_to_all import AllToAllDispatcher, AllToAllEndpoint, join_group
from moonshard.transport.contract import Dispatcher, WireSpec
from tests.contract.transport_cluster import Cell, Worker, compute, expected, free_port, make_rows, make_spec, same_bits

SMALL = {"num_shards": 2, "num_experts": 24}


def run_shard(spec: WireSpec, address: str, rank: int, world_size: int) -> None:
    """A shard in a process of its own."""
    torch.set_num_threads(1)
    endpoint = AllToAllEndpoint(join_group(address, rank, world_size, "cpu", 20.0), spec)
    try:
        while True:
            if batch := endpoint.receive(timeout_s=0.2):
                y_RD = compute(rank, batch.layer, batch.x_RD, batch.topk_ids_RK, batch.topk_weights_RK)
                endpoint.reply(batch, y_RD)
    except TransportError:
        endpoint.close()


StartRemote = Callable[..., tuple[AllToAllDispatcher, list[Any]]]


@pytest.fixture
def start_remote() -> Iterator[StartRemote]:
    """start_remote(spec, timeout_s): a dispatcher here, its shards in processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "moonshard.transport.all_to_all"])
    first = context.Process(target=int)  # pays for the fork server's imports
    first.start()
    first.join(60)
    started: list[tuple[AllToAllDispatcher, list[Any]]] = []

    def start(spec: WireSpec, timeout_s: float) -> tuple[AllToAllDispatcher, list[Any]]:
        address, world_size = f"127.0.0.1:{free_port()}", spec.num_shards + 1
        shards = [
            context.Process(target=run_shard, args=(spec, address, rank, world_size), daemon=True)
            for rank in range(spec.num_shards)
        ]
        for shard in shards:
            shard.start()
        group = join_group(address, spec.num_shards, world_size, "cpu", timeout_s)
        started.append((AllToAllDispatcher(group, spec), shards))
        return started[-1]

    yield start
    for dispatcher, shards in started:
        dispatcher.close()
        for shard in shards:
            shard.kill()
            shard.join(10)


def step(dispatcher: Dispatcher, spec: WireSpec, num_rows: int = 3) -> None:
    rows = make_rows(spec, num_rows)
    dispatcher.begin_step(num_rows)
    for layer in spec.moe_layers:
        assert same_bits(dispatcher.combine(dispatcher.dispatch(layer, *rows)), expected(spec, layer, rows))


def test_a_killed_shard_is_named_at_once(start_remote: StartRemote) -> None:
    spec = make_spec(**SMALL)
    dispatcher, shards = start_remote(spec, 20.0)
    step(dispatcher, spec)
    shards[1].kill()
    shards[1].join(10)
    started = time.monotonic()
    with pytest.raises(PeerLost, match=r"agreement on step 1, attention worker 0: (shard 0, )?shard 1 gone"):
        step(dispatcher, spec)
    dispatcher.close()
    assert time.monotonic() - started < 3


def test_a_frozen_shard_is_a_timeout(start_remote: StartRemote) -> None:
    spec = make_spec(**SMALL)
    dispatcher, shards = start_remote(spec, 3.0)
    step(dispatcher, spec)
    os.kill(shards[0].pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(TransportTimeout, match="no answer within 3 s"):
        step(dispatcher, spec)
    dispatcher.close()
    assert time.monotonic() - started < 5


def test_the_death_of_rank_0_ends_the_sleep(start_remote: StartRemote) -> None:
    spec = make_spec(**SMALL)
    dispatcher, shards = start_remote(spec, 20.0)
    dispatcher.idle(0.2)
    threading.Timer(0.3, shards[0].kill).start()
    with pytest.raises(PeerLost, match="rank 0"):
        dispatcher.idle(15.0)
    dispatcher.wake()
    dispatcher.close()
    dispatcher.wake()


def test_sleeping_costs_no_processor_time(start_remote: StartRemote) -> None:
    dispatcher, _ = start_remote(make_spec(**SMALL), 20.0)
    dispatcher.idle(0.2)
    before = time.process_time()
    dispatcher.idle(1.0)
    assert time.process_time() - before < 0.1


def test_the_default_group_stays_free(tmp_path: Path) -> None:
    cell = Cell("all_to_all", make_spec(**SMALL), 1, tmp_path)
    cell.run([lambda dispatcher: torch.distributed.is_initialized() and pytest.fail("took the default group")])
    cell.close()


def test_sleeps_and_wakes_in_any_order_lose_nothing(tmp_path: Path) -> None:
    spec = make_spec(**SMALL, moe_layers=(1,))

    def script(seed: int) -> Callable[[Dispatcher], int]:
        chance = random.Random(seed)

        def run(dispatcher: Dispatcher) -> int:
            for _ in range(40):
                timer = threading.Timer(chance.random() * 0.01, dispatcher.wake)
                timer.start()
                started = time.monotonic()
                dispatcher.idle(10.0)
                assert time.monotonic() - started < 5, "a wake was lost"
                timer.join()
                if chance.random() < 0.7:
                    step(dispatcher, spec, chance.randrange(1, 4))
            return 40

        return run

    cell = Cell("all_to_all", spec, 2, tmp_path)
    assert cell.run([script(1), script(2)]) == [40, 40]
    cell.close()


@pytest.mark.parametrize(("field", "value"), [("hidden_size", 25), ("checkpoint_id", "decaf"), ("epoch", 8)])
def test_ranks_with_another_spec_are_told(field: str, value: Any) -> None:
    spec = make_spec(num_shards=1, num_experts=12)
    address = f"127.0.0.1:{free_port()}"
    theirs = Worker(lambda: AllToAllEndpoint(join_group(address, 0, 2, "cpu", 10.0), spec))
    with pytest.raises(ProtocolMismatch, match=rf"handshake, rank 0: {field}: expected .*{value}.*, got "):
        AllToAllDispatcher(join_group(address, 1, 2, "cpu", 10.0), replace(spec, **{field: value}))
    with pytest.raises(ProtocolMismatch, match=rf"handshake, rank 1: {field}: expected .*, got .*{value}"):
        theirs.result()


def test_a_layer_out_of_order_is_refused_before_it_hangs_the_others(tmp_path: Path) -> None:
    spec = make_spec(**SMALL)

    def script(dispatcher: Dispatcher) -> None:
        rows = make_rows(spec, 2)
        with pytest.raises(ProtocolMismatch, match="layer: expected a new step, got 1"):
            dispatcher.dispatch(1, *rows)
        dispatcher.begin_step(2)
        with pytest.raises(ProtocolMismatch, match="layer: expected 1, got 2"):
            dispatcher.dispatch(2, *rows)
        with pytest.raises(ProtocolMismatch, match="num_rows: expected the 2 of begin_step, got 3"):
            dispatcher.dispatch(1, *make_rows(spec, 3))
        for layer in spec.moe_layers:
            dispatcher.combine(dispatcher.dispatch(layer, *rows))

    cell = Cell("all_to_all", spec, 1, tmp_path)
    cell.run([script])
    cell.close()


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="address: must be host:port, got 'nowhere'"):
        join_group("nowhere", 0, 1, "cpu", 1.0)
    with pytest.raises(ConfigError, match=r"rank: must be in 0..1, got 2"):
        join_group("127.0.0.1:1", 2, 2, "cpu", 1.0)
    with pytest.raises(ConfigError, match="world_size: must exceed the 2 shards, got 1"):
        AllToAllDispatcher(join_group(f"127.0.0.1:{free_port()}", 0, 1, "cpu", 5.0), make_spec(**SMALL))


def test_a_missing_rank_is_a_timeout() -> None:
    with pytest.raises(TransportError, match=r"rank 0 of 2 cannot join the group at 127.0.0.1"):
        join_group(f"127.0.0.1:{free_port()}", 0, 2, "cpu", 1.0)


def test_no_descriptor_and_no_thread_leaks(tmp_path: Path) -> None:
    def once() -> tuple[int, int]:
        cell = Cell("all_to_all", make_spec(**SMALL), 2, tmp_path)
        cell.run([lambda dispatcher: dispatcher.idle(0.05)] * 2)
        cell.close()
        del cell
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    first = once()
    deadline = time.monotonic() + 10
    while (last := once()) > first and time.monotonic() < deadline:
        time.sleep(0.2)
    assert last <= first
