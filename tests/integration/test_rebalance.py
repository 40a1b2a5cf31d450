"""Experts change places while requests run: nothing fails, no answer changes, every row is counted once."""

import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from moonshard.errors import FailedPrecondition, RequestError
from moonshard.placement import Layer, Rules, contiguous, plan_layer
from moonshard.rpc.placements import layer_to_proto, layers_from_proto
from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.client import Client
from tests.integration.cells import EXACT, OPEN, CommandLineCell, greedy, moonshard, running_cell
from tests.integration.test_exact_counts import CROWD, MAX_TOKENS, NUM_LAYERS, TOP_K, Routed, routed, told

__all__ = ["routed"]

APPLY_S = 120.0
PROMPT = [1, 2, 3, 4, 5]
MOVABLE = {**EXACT, "experts": {**EXACT["experts"], "redundant_slots": 2}}


def plans(seed: int) -> dict[int, Layer]:
    """Far from blocks, and from other seeds."""
    draw = np.random.default_rng(seed)
    return {layer: plan_layer(draw.gamma(0.3, 1000, 384).astype(int).tolist(), Rules(8, 50)) for layer in (1, 2)}


def apply(client: Client, layers: dict[int, Layer]) -> list[pb.PlacementProgress]:
    request = pb.ApplyPlacementRequest(layers=[layer_to_proto(*it) for it in layers.items()])
    return list(client.apply_placement(request, APPLY_S))


@contextmanager
def moving(client: Client) -> Iterator[list[int]]:
    """Placements follow each other until the block ends; copies loaded in each."""
    over, loaded = threading.Event(), list[int]()

    def move() -> None:
        seed = 0
        while not over.is_set():
            loaded.append(apply(client, plans(seed))[-1].num_loaded)
            seed += 1

    with ThreadPoolExecutor(1) as pool:
        mover = pool.submit(move)
        try:
            yield loaded
        finally:
            over.set()
            mover.result(APPLY_S)


def test_counts_and_answers_while_experts_move(routed: Routed, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Two attention workers, each shard twice, every layer placed anew again and again."""
    # Rows that are hedged or computed twice for comparison are counted twice, where they are computed.
    once = {"attention": {"recheck_every": 0}, "timeouts": {"hedge_s": 30.0}}
    settings = {**MOVABLE, **once, "num_attention": 2, "num_replicas": 2, "metrics": OPEN}
    with running_cell(tiny_checkpoint, tmp_path, **settings) as (_, client):
        with moving(client) as loaded, ThreadPoolExecutor(CROWD) as pool:
            answers = list(pool.map(lambda prompt: greedy(client, prompt, MAX_TOKENS), routed.prompts))
        load = told(client, routed.num_rows * TOP_K * NUM_LAYERS)
        placed = client.placement()
        status = client.status()
    assert answers == routed.tokens
    assert np.array_equal(load.rows_LE, routed.rows_LE), np.argwhere(load.rows_LE != routed.rows_LE)
    assert sum(loaded) > 100
    assert placed.generation > 100
    assert layers_from_proto(placed.layers) == plans(len(loaded) - 1)
    assert (status.coverage.num_covered, status.coverage.min_copies) == (384, 2)
    assert status.coverage.max_copies > 2


def test_the_same_answers_as_undisturbed_in_bf16(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What is rounded on the wire is rounded alike wherever it was computed."""
    draw = torch.Generator().manual_seed(5)
    prompts = [torch.randint(0, 1700, (12,), generator=draw).tolist() for _ in range(16)]
    cell = running_cell(tiny_checkpoint, tmp_path, experts={"redundant_slots": 2})
    with cell as (_, client), ThreadPoolExecutor(CROWD) as pool:
        undisturbed = list(pool.map(lambda prompt: greedy(client, prompt, 24), prompts))
        with moving(client) as loaded:
            while not loaded:
                assert list(pool.map(lambda prompt: greedy(client, prompt, 24), prompts)) == undisturbed
        assert list(pool.map(lambda prompt: greedy(client, prompt, 24), prompts)) == undisturbed


def test_a_placement_outlives_shards_and_router(up: Callable[..., CommandLineCell]) -> None:
    cell = up("--shards", "4", "--redundant-slots", "2")
    wanted = {1: plan_layer([1 + expert * 7919 % 1000 for expert in range(384)], Rules(4, 98))}
    with Client(cell.router_address) as client:
        before = greedy(client, PROMPT, 8)
        apply(client, wanted)
        assert greedy(client, PROMPT, 8) == before
    for name in ("expert-1", "attention-0", "router"):
        victim = cell.member(name)
        victim.send_signal(signal.SIGKILL)
        victim.wait(APPLY_S)
        cell.await_member(name, APPLY_S)
        with Client(cell.router_address) as client:
            assert greedy(client, PROMPT, 8) == before
            assert layers_from_proto(client.placement().layers)[1] == wanted[1]
    with Client(cell.router_address) as client:
        blocks = contiguous(384, 4)
        apply(client, {1: blocks})
        assert greedy(client, PROMPT, 8) == before
        assert layers_from_proto(client.placement().layers)[1] == blocks


def test_a_shard_whose_experts_all_have_copies_is_not_missed(up: Callable[..., CommandLineCell]) -> None:
    cell, everything = up("--shards", "2", "--redundant-slots", "192"), tuple(range(384))
    with Client(cell.router_address) as client:
        before = greedy(client, PROMPT, 8)
        apply(client, dict.fromkeys((1, 2), (everything, everything)))
        assert client.status().coverage.min_copies == 2
        drained = list(client.drain(pb.ROLE_EXPERT, 1, waits=False, finish_s=None, timeout_s=APPLY_S))
        assert drained[-1].is_drained
        assert greedy(client, PROMPT, 8) == before
        client.undrain(pb.ROLE_EXPERT, 1)
        victim = cell.member("expert-0")
        victim.send_signal(signal.SIGSTOP)  # so that it cannot come back too soon
        victim.send_signal(signal.SIGKILL)
        assert greedy(client, PROMPT, 8) == before
    cell.await_member("expert-0", APPLY_S)


def test_what_cannot_be_applied(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with running_cell(tiny_checkpoint, tmp_path, num_shards=2, experts={"redundant_slots": 1}) as (_, client):
        low, high = contiguous(384, 2)
        with pytest.raises(RequestError, match=r"layers: placement.layer: must be an MoE layer in 1..2, got 9"):
            apply(client, {9: (low, high)})
        with pytest.raises(RequestError, match="layers: placement: layer 1: expert 192 has no copy"):
            apply(client, {1: (low, high[1:])})
        with pytest.raises(RequestError, match="the wanted placement needs 194 slots of a shard, there are 193"):
            apply(client, {1: (low, tuple(range(190, 384)))})
        client.pin(pb.Pin(layer=1, expert=3, shards=[1]))
        with pytest.raises(RequestError, match="layers: expert 3 of layer 1 is pinned to shard 1"):
            apply(client, {1: ((*low, 192), high)})
        assert [progress.num_loaded for progress in apply(client, {1: (low, (3, *high))})] == [1]
        request = pb.ApplyPlacementRequest(generation=7, layers=[layer_to_proto(1, (low, high))])
        with pytest.raises(FailedPrecondition, match="planned for placement 7, it is 1 by now"):
            list(client.apply_placement(request, APPLY_S))


def test_the_command_plans_applies_and_pins(tiny_checkpoint: Path, tmp_path: Path) -> None:
    cell = running_cell(tiny_checkpoint, tmp_path, num_shards=2, experts={"redundant_slots": 4}, metrics=OPEN)
    with cell as (cluster, client), ThreadPoolExecutor(CROWD) as pool:
        answers = list(pool.map(lambda at: greedy(client, [at, *PROMPT], 16), range(16)))
        where = ("--router", cluster.router_address)
        planned = moonshard("placement", "plan", "--row-us", "100000", "--save", str(tmp_path / "plan.json"), *where)
        assert "2 of 2 layers pay" in planned.stdout.replace("\n", " "), planned.stdout + planned.stderr
        applied = moonshard("placement", "apply", str(tmp_path / "plan.json"), "--row-us", "100000", *where)
        assert re.search(r"placement \d+: 2 layers changed, \d+ copies loaded in", applied.stdout), applied.stdout
        again = moonshard("placement", "apply", str(tmp_path / "plan.json"), *where)
        assert "no layer's change would gain more than it costs" in again.stdout.replace("\n", " "), again.stdout
        pin = moonshard("placement", "pin", "2", "200", "0", *where)
        assert "expert 200 of layer 2 stays at shard 0" in pin.stdout, pin.stdout + pin.stderr
        assert 200 in layers_from_proto(client.placement().layers)[2][0]
        shown = moonshard("placement", "show", *where)
        assert "layer 2: expert 200 is pinned to shard 0" in shown.stdout, shown.stdout
        auto = moonshard("placement", "apply", "--auto", "--row-us", "100000", "--watch", "0.1", *where)
        assert auto.returncode == 0, auto.stderr
        assert list(pool.map(lambda at: greedy(client, [at, *PROMPT], 16), range(16))) == answers


def test_experts_stay_where_there_are_no_slots(client: Client) -> None:
    with pytest.raises(FailedPrecondition, match="experts cannot move in this cell: experts"):
        apply(client, {1: contiguous(384, 8)})
